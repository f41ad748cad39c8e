package cri

import (
	"slices"
	"strings"
	"testing"
)

// What the suite says about its tests is understood, and nothing bad passes:
// a failure, a skip without a reason, a test that is missing or ended half way.
func TestJudge(t *testing.T) {
	// As go tool test2json writes it.
	const events = `{"Action":"start"}
{"Action":"run","Test":"TestGood"}
{"Action":"output","Test":"TestGood","Output":"--- FAIL: TestInTheText (0.00s)\n"}
{"Action":"pass","Test":"TestGood"}
{"Action":"run","Test":"TestBad"}
{"Action":"run","Test":"TestBad/sub"}
{"Action":"fail","Test":"TestBad/sub"}
{"Action":"fail","Test":"TestBad"}
{"Action":"skip","Test":"TestLazy"}
{"Action":"skip","Test":"TestContainerCgroupWritable"}
{"Action":"pass","Test":"TestStranger"}
{"Action":"run","Test":"TestHalf"}
{"Action":"fail"}
`
	r := results{}
	if err := r.read(t, strings.NewReader(events)); err != nil {
		t.Fatal(err)
	}
	got := r.problems([]string{"TestGood", "TestBad", "TestLazy", "TestContainerCgroupWritable", "TestHalf", "TestMissing"})
	want := []string{
		"TestHalf did not run to its end",
		"TestMissing did not run to its end",
		"TestBad failed",
		"TestBad/sub failed",
		"TestLazy skipped itself",
		"TestStranger ran without being asked for",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %q\nwant %q", got, want)
	}
	if err := r.read(t, strings.NewReader("panic: no events\n")); err == nil {
		t.Error("what is no event was taken for one")
	}
}
