package report

import (
	"fmt"
	"os"
	"strings"
)

// ReplaceMarked replaces what is between the lines of a mark in a file; by is
// the command that writes it, as the mark says.
func ReplaceMarked(path, mark, by, text string) error {
	beginMark, endMark := "<!-- "+mark+": begin (written by "+by+") -->", "<!-- "+mark+": end -->"
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	before, rest, ok := strings.Cut(string(b), beginMark+"\n")
	_, after, ok2 := strings.Cut(rest, endMark+"\n")
	if !ok || !ok2 {
		return fmt.Errorf("%s: no lines %q and %q", path, beginMark, endMark)
	}
	return os.WriteFile(path, []byte(before+beginMark+"\n"+text+endMark+"\n"+after), 0o644)
}
