// Package version says which build this is.
package version

import "runtime/debug"

// version is set by the Makefile with -ldflags -X.
var version = ""

// String returns the release, or what Go knows of the build.
func String() string {
	if version != "" {
		return version
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "unknown"
}
