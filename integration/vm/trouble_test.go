package vm

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Logs in testdata/trouble: lines that begin with "!" are the ones to find.
func TestTrouble(t *testing.T) {
	files, err := filepath.Glob("testdata/trouble/*.log")
	if err != nil {
		t.Fatal(err)
	}
	if len(files) == 0 {
		t.Fatal("no logs")
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			b, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			var log, want []string
			for line := range strings.Lines(string(b)) {
				line = strings.TrimSuffix(line, "\n")
				if found, ok := strings.CutPrefix(line, "!"); ok {
					line = found
					want = append(want, found)
				}
				log = append(log, line)
			}
			got := trouble(strings.Join(log, "\n"))
			if strings.Join(got, "\n") != strings.Join(want, "\n") {
				t.Errorf("found\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
			}
		})
	}
}

func TestDiedOfInt3(t *testing.T) {
	for line, want := range map[string]bool{
		"[    1.234567] int3: 0000 [#1] PREEMPT SMP NOPTI":                    true,
		"[    1.234567] Oops: int3: 0000 [#1] PREEMPT SMP NOPTI":              true,
		"[    1.234567] general protection fault: 0000 [#1] PREEMPT SMP":      false,
		"[    1.234567] Kernel panic - not syncing: int3 in the wrong place":  false,
		"[    1.234567] RIP: 0010:asm_exc_int3+0x39/0x40, no int3: 0000 here": false,
	} {
		if got := diedOfInt3("first line\n" + line + "\nlast line\n"); got != want {
			t.Errorf("diedOfInt3(%q) = %v, want %v", line, got, want)
		}
	}
}
