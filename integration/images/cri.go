package images

import (
	"bytes"
	"context"
	"debug/elf"
	"fmt"
	"os"
	"os/exec"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// CRI are stand-ins for the images that containerd's CRI tests pull, by the
// names that the suite's --image-list has for them (containerd
// integration/images/image_list.go), each with what the tests look for in it.
var CRI = map[string]string{
	"Alpine":           "cri-alpine",
	"BusyBox":          "cri-busybox",
	"Pause":            "cri-pause",
	"ResourceConsumer": "cri-consumer",
	"VolumeCopyUp":     "cri-copyup",
	"VolumeOwnership":  "cri-ownership",
	"Nginx":            "cri-nginx",
}

// makeCRIPause makes the image of the process that keeps a pod's namespaces. It
// holds one file, as the one it stands for.
func makeCRIPause(_ context.Context, m *maker) error {
	prog, err := os.ReadFile(m.cache.TestProg)
	if err != nil {
		return err
	}
	if err := m.tar(Gzip, func(t *layerTar) { t.file("pause", string(prog), mode(0o755)) }); err != nil {
		return err
	}
	return m.finishWith(m.layers, ocispec.ImageConfig{Entrypoint: []string{"/pause"}, User: "65535:65535"}, nil)
}

// makeCRIBusyBox makes an image of busybox with its programs as hard links, and
// with the groups that the suite expects.
func makeCRIBusyBox(_ context.Context, m *maker) error {
	prog, applets, err := busybox()
	if err != nil {
		return err
	}
	err = m.tar(Gzip, func(t *layerTar) {
		busyboxTree(t)
		t.file("bin/busybox", prog, mode(0o755))
		for _, name := range applets {
			t.link(name, "bin/busybox", mode(0o755))
		}
	})
	if err != nil {
		return err
	}
	return m.finish(m.layers, []string{"sh"}, nil)
}

// makeCRIAlpine makes an image of several layers whose shell is a symlink.
func makeCRIAlpine(_ context.Context, m *maker) error {
	prog, applets, err := busybox()
	if err != nil {
		return err
	}
	for _, l := range []struct {
		c    Compression
		fill func(*layerTar)
	}{
		{Zstd, busyboxTree},
		{Gzip, func(t *layerTar) {
			t.file("bin/busybox", prog, mode(0o755))
			for _, name := range applets {
				t.symlink(name, "/bin/busybox")
			}
		}},
		{Zstd, func(t *layerTar) { t.file("etc/os-release", "NAME=\"Alpine Linux\"\nID=standin\n") }},
	} {
		if err := m.tar(l.c, l.fill); err != nil {
			return err
		}
	}
	return m.finish(m.layers, []string{"/bin/sh"}, nil)
}

// The images below are based on cri-busybox.

// makeCRIConsumer has a "stress" that takes a little more memory than the suite
// asks it for; dd touches all of its buffer.
func makeCRIConsumer(_ context.Context, m *maker) error {
	err := m.tar(Gzip, func(t *layerTar) {
		t.file("bin/stress", "#!/bin/sh\nexec timeout 30 dd if=/dev/zero of=/dev/null bs=120M\n", mode(0o755))
	})
	if err != nil {
		return err
	}
	return m.finish(m.layers, []string{"sleep", "1d"}, nil)
}

// makeCRICopyUp has the volumes of containerd's integration/images/volume-copy-up.
func makeCRICopyUp(_ context.Context, m *maker) error {
	for _, file := range []string{"test_dir/test_file", "C:/weird_test_dir/weird_test_file", ":colon_prefixed/colon_prefixed_file"} {
		err := m.tar(Gzip, func(t *layerTar) {
			dirs := strings.Split(file, "/")
			for i := 1; i < len(dirs); i++ {
				t.dir(strings.Join(dirs[:i], "/"))
			}
			t.file(file, "test_content\n")
		})
		if err != nil {
			return err
		}
	}
	return m.finishWith(m.layers, ocispec.ImageConfig{
		Cmd:     []string{"sh"},
		Volumes: map[string]struct{}{"/test_dir": {}, "C:/weird_test_dir": {}, "/:colon_prefixed": {}},
	}, nil)
}

// makeCRIOwnership has the volume of containerd's integration/images/volume-ownership.
func makeCRIOwnership(_ context.Context, m *maker) error {
	for _, uid := range []int{0, 65534} { // made, then chowned
		if err := m.tar(Gzip, func(t *layerTar) { t.dir("test_dir", owner(uid, uid)) }); err != nil {
			return err
		}
	}
	return m.finishWith(m.layers, ocispec.ImageConfig{
		Cmd:     []string{"sh"},
		Volumes: map[string]struct{}{"/test_dir": {}},
	}, nil)
}

// makeCRINginx opens its standard error by name and says what the suite waits
// for, which needs the right owner of the pipe in a user namespace.
func makeCRINginx(_ context.Context, m *maker) error {
	err := m.tar(Gzip, func(t *layerTar) {
		t.dir("var")
		t.dir("var/log")
		t.symlink("var/log/error.log", "/dev/stderr")
		t.file("bin/nginx", "#!/bin/sh\nset -e\necho start worker processes >/var/log/error.log\nexec sleep 1d\n", mode(0o755))
	})
	if err != nil {
		return err
	}
	return m.finish(m.layers, []string{"nginx"}, nil)
}

func busyboxTree(t *layerTar) {
	for _, d := range []string{"bin", "dev", "etc", "home", "proc", "root", "run", "sbin", "sys", "usr", "usr/bin", "usr/sbin", "var"} {
		t.dir(d)
	}
	t.dir("tmp", mode(0o1777))
	t.file("etc/passwd", "root:x:0:0:root:/root:/bin/sh\ndaemon:x:1:1:daemon:/usr/sbin:/bin/false\nnobody:x:65534:65534:nobody:/home:/bin/false\n")
	t.file("etc/group", "root:x:0:\ndaemon:x:1:\nwheel:x:10:root\nnogroup:x:65534:\n")
	t.file("etc/shadow", "root:*:::::::\n", mode(0o600))
}

// busybox returns this machine's static busybox and the paths of its programs.
func busybox() (prog string, applets []string, err error) {
	path, err := exec.LookPath("busybox")
	if err != nil {
		return "", nil, fmt.Errorf("%w: install busybox-static", err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return "", nil, err
	}
	f, err := elf.NewFile(bytes.NewReader(b))
	if err != nil {
		return "", nil, fmt.Errorf("%s: %w", path, err)
	}
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return "", nil, fmt.Errorf("%s is not static: install busybox-static", path)
		}
	}
	out, err := exec.Command(path, "--list-full").Output()
	if err != nil {
		return "", nil, fmt.Errorf("%s --list-full: %w", path, err)
	}
	for _, a := range strings.Fields(string(out)) {
		if a != "bin/busybox" {
			applets = append(applets, a)
		}
	}
	return string(b), applets, nil
}
