package daxmem

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// crashRow is a row of the tables of docs/memory-model.md, with the points at
// which TestCrashTable kills a process on its way through it: those before its
// last one are "dies before", the last one is "dies after".
type crashRow struct {
	table string // heading above the table
	row   string // its first cell
	steps []crashStep
}

// crashStep is one point, and the story (crashstories_test.go) that comes by.
type crashStep struct {
	step  string
	story string
}

var crashTable = []crashRow{
	{"Transitions", "space free → in flight", []crashStep{{stepExtentWritten, "publish"}, {stepSegmentWritten, "publish"}}},
	{"Transitions", "FREE → WRITING", []crashStep{{stepRecordTaken, "publish"}, {stepPayloadWritten, "publish"}}},
	{"Transitions", "WRITING → FREE", []crashStep{{stepRecordCleared, "publish fails"}, {stepRecordFree, "publish fails"}}},
	{"Transitions", "WRITING: indexed", []crashStep{{stepRecordIndexed, "publish"}}},
	{"Transitions", "WRITING → LIVE", []crashStep{{stepRecordLive, "publish"}}},
	{"Transitions", "LIVE: durable flag", []crashStep{{stepRegionSynced, "publish"}, {stepRecordDurable, "publish"}}},
	{"Transitions", "LIVE → RETIRED", []crashStep{{stepBeforeRetire, "remove"}, {stepRecordRetired, "remove"}}},
	{"Transitions", "RETIRED: unlinked", []crashStep{{stepRecordSkipped, "remove"}, {stepRecordUnlinked, "remove"}}},
	{"Transitions", "RETIRED, pinned", []crashStep{{stepRecordKept, "remove pinned"}}},
	{"Transitions", "RETIRED → FREE", []crashStep{{stepRegionSynced, "remove"}, {stepSpacePunched, "remove"}, {stepRecordCleared, "remove"}, {stepRecordFree, "remove"}}},
	{"Transitions", "abort of an import", []crashStep{{stepSpaceGivenBack, "abort"}}},
	{"Transitions", "extent's last holder goes", []crashStep{{stepSpacePunched, "remove"}, {stepSpaceGivenBack, "abort"}}},
	{"Transitions", "growth", []crashStep{{stepRegionGrown, "open"}}},
	{"Transitions", "open", []crashStep{{stepPoolAcquired, "open"}, {stepPoolOpen, "open"}}},
	{"Transitions", "close", []crashStep{{stepBeforeClean, "close"}, {stepPoolClean, "close"}}},
	{"Transitions", "quarantine", []crashStep{{stepRecordQuarantined, "quarantine"}}},

	{"Seats", "free → claimed", []crashStep{{stepSeatClaimed, "read"}}},
	{"Seats", "claimed → held", []crashStep{{stepLeaseWritten, "read"}, {stepSeatHeld, "read"}}},
	{"Seats", "held → held", []crashStep{{stepSeatFound, "read again"}}},
	{"Seats", "pin set", []crashStep{{stepPinSet, "read"}, {stepPinChecked, "read"}}},
	{"Seats", "pin cleared", []crashStep{{stepBeforeUnpin, "read"}, {stepPinCleared, "read"}}},
	{"Seats", "held → free", []crashStep{{stepSeatLeft, "read"}}},
	{"Seats", "held → free, by others", []crashStep{{stepSeatEvicted, "evict"}}},

	{"Ownership", "nobody → owned", []crashStep{{stepSeatTaken, "open"}, {stepPoolAcquired, "open"}, {stepIndexBuilt, "open"}, {stepPoolOwned, "open"}}},
	{"Ownership", "owned, same boot ID", []crashStep{{stepSeatFound, "open again"}, {stepPoolAcquired, "open again"}, {stepPoolOwned, "open again"}}},
	{"Ownership", "owned → taken over", []crashStep{{stepSeatTaken, "take over"}, {stepTakeoverBegun, "take over"}}},
	{"Ownership", "taken over → owned", []crashStep{{stepCatalogFenced, "take over"}, {stepPoolOpen, "take over"}, {stepIndexBuilt, "take over"}, {stepPoolOwned, "take over"}}},
	{"Ownership", "owned → nobody", []crashStep{{stepPoolClean, "close"}, {stepPoolDisowned, "close"}}},

	// Its text has no table.
	{"Mailbox", "", []crashStep{{stepRequestOpened, "ask"}, {stepRequestWritten, "ask"}, {stepRequestSent, "ask"}}},
	{"Mailbox", "", []crashStep{{stepRequestTaken, "answer"}, {stepBeforeReply, "answer"}, {stepReplyWritten, "answer"}}},
}

// Every row of the tables in docs/memory-model.md is in crashTable, and no other.
func TestCrashTableIsTheDocs(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("..", "docs", "memory-model.md"))
	if err != nil {
		t.Fatal(err)
	}
	want := map[string][]string{}
	heading := ""
	for line := range strings.Lines(string(text)) {
		if h := strings.TrimSpace(strings.TrimLeft(line, "#")); strings.HasPrefix(line, "#") {
			heading = h
			continue
		}
		cells := strings.Split(line, "|")
		if (heading == "Transitions" || heading == "Seats" || heading == "Ownership") && len(cells) > 3 {
			if row := strings.TrimSpace(cells[1]); row != "from → to" && strings.Trim(row, "-") != "" {
				want[heading] = append(want[heading], row)
			}
		}
	}
	got := map[string][]string{}
	for _, r := range crashTable {
		if r.row != "" {
			got[r.table] = append(got[r.table], r.row)
		}
	}
	for h := range want {
		if !slices.Equal(got[h], want[h]) {
			t.Errorf("%s: the docs have the rows\n%q\ncrashTable has\n%q", h, want[h], got[h])
		}
	}
	if len(want) != 3 {
		t.Errorf("tables found in the docs: %d, want 3", len(want))
	}
}

// Every step in the code is in crashTable, and the other way round.
func TestCrashTableIsTheCode(t *testing.T) {
	sources, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	names, called := map[string]string{}, map[string]bool{}
	look := func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.ValueSpec:
			if id := n.Names[0].Name; strings.HasPrefix(id, "step") && len(n.Values) == 1 {
				if lit, ok := n.Values[0].(*ast.BasicLit); ok {
					names[id], _ = strconv.Unquote(lit.Value)
				}
			}
		case *ast.CallExpr:
			if f, ok := n.Fun.(*ast.Ident); ok && f.Name == "step" {
				arg, ok := n.Args[0].(*ast.Ident)
				if !ok {
					t.Errorf("step is called with something that is no constant of step.go")
					return true
				}
				called[arg.Name] = true
			}
		}
		return true
	}
	for _, path := range sources {
		if strings.HasSuffix(path, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(f, look)
	}
	inTable := map[string]bool{}
	for _, r := range crashTable {
		for _, s := range r.steps {
			inTable[s.step] = true
		}
	}
	for id, name := range names {
		if !called[id] {
			t.Errorf("%s is called nowhere", id)
		}
		if !inTable[name] {
			t.Errorf("%s (%q) is in no row of crashTable", id, name)
		}
	}
	if len(names) < 40 || len(called) != len(names) {
		t.Errorf("%d steps are called, %d are named", len(called), len(names))
	}
}
