package build

import (
	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
)

func lint(file string, text []byte) []*gantryv1.BuildEvent_Warning { return nil }
