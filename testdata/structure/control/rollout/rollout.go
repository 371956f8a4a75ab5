// Package rollout imports its sibling.
package rollout

import _ "github.com/gantryd/gantry/control/schedule"

func a() {}
