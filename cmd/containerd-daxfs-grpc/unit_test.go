package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/daxfs/containerd-daxfs/internal/config"
)

// The unit file agrees with the defaults, and has no option that would hide
// the daemon's mounts from containerd (systemd.exec(5): what implies a mount
// namespace).
func TestUnitFile(t *testing.T) {
	b, err := os.ReadFile("../../systemd/containerd-daxfs.service")
	if err != nil {
		t.Fatal(err)
	}
	set := make(map[string]string)
	for _, l := range strings.Split(string(b), "\n") {
		if k, v, ok := strings.Cut(l, "="); ok && !strings.HasPrefix(l, "#") {
			if _, twice := set[k]; twice {
				t.Errorf("%s stands twice", k)
			}
			set[k] = v
		}
	}
	cfg := config.Default()
	for k, want := range map[string]string{
		"Type":                     "notify",
		"KillMode":                 "process",
		"Restart":                  "always",
		"Before":                   "containerd.service",
		"ExecStart":                "/usr/local/bin/containerd-daxfs-grpc",
		"RuntimeDirectory":         filepath.Base(filepath.Dir(cfg.Address)),
		"RuntimeDirectoryMode":     "0700",
		"RequiresMountsFor":        cfg.Root,
		"RestartPreventExitStatus": "2", // exitUsage
	} {
		if set[k] != want {
			t.Errorf("%s=%s, want %s", k, set[k], want)
		}
	}
	if dir := filepath.Dir(filepath.Dir(cfg.Address)); dir != "/run" {
		t.Errorf("the socket's directory is in %s, RuntimeDirectory is in /run", dir)
	}
	hiding := []string{
		"PrivateMounts", "PrivateTmp", "PrivateDevices", "PrivateUsers", "PrivateNetwork", "PrivateIPC", "ProtectSystem", "ProtectHome",
		"ProtectKernelTunables", "ProtectKernelModules", "ProtectKernelLogs", "ProtectControlGroups", "ProtectProc", "ProcSubset",
		"ReadWritePaths", "ReadOnlyPaths", "InaccessiblePaths", "ExecPaths", "NoExecPaths", "TemporaryFileSystem", "BindPaths",
		"BindReadOnlyPaths", "RootDirectory", "RootImage", "MountImages", "ExtensionImages", "ExtensionDirectories", "MountAPIVFS",
		"MountFlags", "DynamicUser", "LogNamespace",
	}
	for k := range set {
		if slices.Contains(hiding, k) {
			t.Errorf("%s= gives the daemon a mount namespace of its own", k)
		}
	}
}
