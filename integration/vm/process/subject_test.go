package process

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// buildSubject puts the C programs that the tests do things to below dir:
// bin/subject, which needs lib/libpart.so and the C library, and
// bin/subject-static, which needs nothing. Both have debug information. It
// needs gcc.
func buildSubject(dir string) error {
	src, err := filepath.Abs("testdata")
	if err != nil {
		return err
	}
	for _, d := range []string{"bin", "lib"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return err
		}
	}
	flags := []string{"-O1", "-g", "-Wall", "-Wextra", "-Werror"}
	for _, args := range [][]string{
		{"-shared", "-fPIC", "-o", "lib/libpart.so", src + "/part.c"},
		{"-o", "bin/subject", src + "/subject.c", "-Llib", "-lpart", "-Wl,-rpath,$ORIGIN/../lib"},
		{"-static", "-o", "bin/subject-static", src + "/subject.c", src + "/part.c"},
	} {
		cmd := exec.Command("gcc", append(flags, args...)...)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("gcc %q: %w\n%s", args, err, out)
		}
	}
	return nil
}
