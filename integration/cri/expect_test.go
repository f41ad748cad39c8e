package cri

import (
	"maps"
	"slices"
	"strings"
	"testing"
)

const (
	ownContainerd = "starts a containerd of its own, of a configuration that names neither our snapshotter nor a pause image that is here (registry.k8s.io)"
	internet      = "needs the internet"
	cgroup2       = "needs cgroups of version 2 alone"
	numaNodes     = "needs two NUMA nodes"
	noSELinux     = "needs SELinux"
)

// leftOut are the tests of the suite that cannot run without the internet, or
// that cannot reach us.
var leftOut = map[string]string{
	"TestCRIImagePullTimeout":                    internet + ": mirrors ghcr.io; and " + ownContainerd,
	"TestIssue10244LoopbackV2":                   ownContainerd,
	"TestIssue10467":                             internet + ": downloads containerd 1.7.20",
	"TestOOMEventMonitor":                        ownContainerd,
	"TestReload100Pods":                          ownContainerd,
	"TestRunContainerWithVolatileOption":         ownContainerd,
	"TestRuntimeHandlerUnpackWithSnapshotLabels": ownContainerd + ", and is of overlayfs and EROFS",
	"TestUpgrade":                                internet + ": downloads releases of containerd",
}

// maySkip are tests and subtests that skip themselves on machines that lack
// something. No other may.
var maySkip = map[string]string{
	"TestContainerCgroupWritable":                                     cgroup2,
	"TestPrivilegedContainerCgroupMountOptions":                       cgroup2,
	"TestUpdateContainerResources_MemorySwap":                         "needs accounting of swap",
	"TestNriLinuxMemsetAdjustment":                                    numaNodes,
	"TestNriLinuxMemsetAdjustmentUpdate":                              numaNodes,
	"TestImageVolumeBasic/should_apply_selinux_labels_-_s0:c4,c5":     noSELinux,
	"TestImageVolumeBasic/should_apply_selinux_labels_-_s0:c200,c100": noSELinux,
}

// raced are tests that do not wait for what they need, and fail now and then on
// a busy machine, on overlayfs too. They have five tries.
var raced = map[string]string{
	"TestContainerStopCancellation":       "SIGTERM to a shell that has just started and may not have set its trap",
	"TestContainerStopSignals":            "the same with the other signals",
	"TestContainerdRestartSandboxRecover": "ends containerd one second after it has asked for a pod, whose shim must be there by then",
}

// quick are the tests that have to do with images and snapshots. "make cri" runs
// all; the others are of networks, signals, logs and plugins.
var quick = []string{
	"TestAdditionalGids",
	"TestContainerConsumedStats",
	"TestContainerLifecycleWithoutImageRef",
	"TestContainerRestart",
	"TestContainerStats",
	"TestContainerSymlinkVolumes",
	"TestContainerdImage",
	"TestContainerdImageInOtherNamespaces",
	"TestContainerdRestart",
	"TestContainerdSandboxImage",
	"TestContainerdSandboxImagePulledOutsideCRI",
	"TestImageFSInfo",
	"TestImageLoad",
	"TestImageVolumeBasic",
	"TestImageVolumeCheckVolatileOption",
	"TestImageVolumeReusableAfterFailure",
	"TestImageVolumeSetupIfContainerdRestarts",
	"TestImageVolumeWithUserNamespace",
	"TestIssue10598",
	"TestKillShimPreservesExitStatusForMultipleContainers",
	"TestPodUserNS",
	"TestUsernsVolumeCopyUp",
	"TestVolumeCopyUp",
	"TestVolumeOwnership",
}

// problems compares results with what must be: every test that was asked for has
// passed, or has skipped what maySkip has.
func (r results) problems(asked []string) (problems []string) {
	for _, name := range asked {
		if r[name] == "" {
			problems = append(problems, name+" did not run to its end")
		}
	}
	for _, name := range slices.Sorted(maps.Keys(r)) {
		top, _, _ := strings.Cut(name, "/")
		switch {
		case !slices.Contains(asked, top):
			problems = append(problems, name+" ran without being asked for")
		case r[name] == "fail":
			problems = append(problems, name+" failed")
		case r[name] == "skip" && maySkip[name] == "":
			problems = append(problems, name+" skipped itself")
		}
	}
	return problems
}

// plan says which of the suite's tests are run. What this file says of tests
// that are no more is a mistake.
func plan(t *testing.T, all []string, full bool) []string {
	t.Helper()
	known := slices.Concat(slices.Collect(maps.Keys(leftOut)), slices.Collect(maps.Keys(maySkip)), slices.Collect(maps.Keys(raced)), quick)
	for _, name := range known {
		if top, _, _ := strings.Cut(name, "/"); !slices.Contains(all, top) {
			t.Errorf("the suite has no %s", top)
		}
	}
	return slices.DeleteFunc(slices.Clone(all), func(name string) bool {
		return leftOut[name] != "" || !full && !slices.Contains(quick, name)
	})
}
