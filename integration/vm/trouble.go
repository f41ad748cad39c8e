package vm

import (
	"regexp"
	"strings"
)

// defect matches a line with which a kernel reports a defect of its own, after
// the time stamp. The start of the message is what tells lockdep's "WARNING:
// possible circular locking dependency detected" from a driver's "foo: warning:
// ...", which is none.
var defect = regexp.MustCompile(`^(` + strings.Join([]string{
	`WARNING: `,  // WARN_ON; lockdep; suspicious RCU usage
	`BUG[: ]`,    // bad accesses and pages; KASAN; sleeping in atomic context; slab; busy dentries
	`kernel BUG`, // BUG_ON
	`Oops`,
	`Kernel panic`,
	`Call Trace:`,
	`[a-z0-9 ]+\b.*: [0-9a-f]{4} \[#\d+\]`, // 6.1's oops without "Oops": general protection fault, int3, invalid opcode
	`INFO: (task .* blocked for more than|trying to register|possible recursive|suspicious)`,
	`rcu: (INFO: )?rcu_.*(stall|starved)`,
	`watchdog: BUG`,
	`NMI watchdog: (BUG|Watchdog detected)`,
	`UBSAN: |KASAN: |KCSAN: |KFENCE: `,
	`kmemleak: \d+ new`,
	`refcount_t: `,
	`list_(add|del) corruption`,
	`usercopy: Kernel memory`,
	`page dumped because`,
	`kmem_cache_destroy .*still has objects`,
	`VFS: Busy inodes`,
	`Memory failure: `,
	`Out of memory: |.* invoked oom-killer`,
}, "|") + `)`)

// stamp is the time, and with some configurations the caller, before a message.
var stamp = regexp.MustCompile(`^(<\d+>)?\[ *\d+\.\d+\](\[ *[TC]\d+\])? `)

// trouble returns the lines of a console that report a defect. None is expected
// in any test: an out-of-memory kill counts as well, since what it kills would
// otherwise be missed only later.
func trouble(console string) []string {
	var lines []string
	for line := range strings.Lines(console) {
		line = strings.TrimSpace(line)
		at := stamp.FindStringIndex(line)
		if at != nil && defect.MatchString(line[at[1]:]) {
			lines = append(lines, line)
		}
	}
	return lines
}
