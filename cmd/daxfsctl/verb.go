package main

import (
	"github.com/urfave/cli/v2"

	"github.com/daxfs/containerd-daxfs/daxmem"
	"github.com/daxfs/containerd-daxfs/internal/config"
)

// onImage makes the action of a verb about one image, which is open meanwhile:
// the first of its arguments, of which it has atLeast to atMost.
func onImage(atLeast, atMost int, verb func(*cli.Context, *source) error) cli.ActionFunc {
	return func(c *cli.Context) error {
		if err := arguments(c, atLeast, atMost); err != nil {
			return err
		}
		s, err := openSource(c, c.Args().First())
		if err != nil {
			return err
		}
		defer s.Close()
		return verb(c, s)
	}
}

// onPool makes the action of a verb about the configured pool, which is open
// for inspection meanwhile. It has no arguments.
func onPool(verb func(*cli.Context, *config.Config, *daxmem.Pool) error) cli.ActionFunc {
	return func(c *cli.Context) error {
		if err := arguments(c, 0, 0); err != nil {
			return err
		}
		cfg, err := loadConfig(c)
		if err != nil {
			return err
		}
		pool, err := openPool(c.Context, cfg)
		if err != nil {
			return err
		}
		defer shut(pool)
		return verb(c, cfg, pool)
	}
}
