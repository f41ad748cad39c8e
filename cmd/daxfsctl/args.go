package main

import (
	"strings"

	"github.com/urfave/cli/v2"
)

// arrange moves options behind the verb and before its arguments, where
// package flag wants them, so that they may stand anywhere.
func arrange(app *cli.App, args []string) ([]string, error) {
	if len(args) > 1 && (args[1] == "help" || args[1] == "h") {
		// The package's own help leaves out the verbs.
		args = append(append([]string{args[0]}, args[2:]...), "--help")
	}
	withValue := make(map[string]bool)
	noteFlags(app.Commands, withValue)
	var verbs, flags, rest []string
	cmds := app.Commands
	atVerb := true
	for i := 1; i < len(args); i++ {
		a := args[i]
		switch {
		case a == "--":
			rest = append(rest, args[i+1:]...)
			i = len(args)
		case len(a) > 1 && a[0] == '-':
			flags = append(flags, a)
			name := strings.TrimLeft(a, "-")
			if withValue[name] {
				if i+1 == len(args) {
					return nil, usagef("option %s needs a value", a)
				}
				i++
				flags = append(flags, args[i])
			}
		case atVerb && find(cmds, a) != nil:
			verbs = append(verbs, a)
			cmds = find(cmds, a).Subcommands
			atVerb = len(cmds) > 0
		default:
			atVerb = false
			rest = append(rest, a)
		}
	}
	out := append([]string{args[0]}, verbs...)
	out = append(out, flags...)
	if len(rest) > 0 {
		out = append(append(out, "--"), rest...)
	}
	return out, nil
}

func find(cmds []*cli.Command, name string) *cli.Command {
	for _, c := range cmds {
		if c.HasName(name) {
			return c
		}
	}
	return nil
}

// noteFlags notes the options of all commands that take a value. No two
// commands have the same option with and without one.
func noteFlags(cmds []*cli.Command, withValue map[string]bool) {
	for _, c := range cmds {
		for _, f := range c.Flags {
			if _, ok := f.(*cli.BoolFlag); ok {
				continue
			}
			for _, n := range f.Names() {
				withValue[n] = true
			}
		}
		noteFlags(c.Subcommands, withValue)
	}
}
