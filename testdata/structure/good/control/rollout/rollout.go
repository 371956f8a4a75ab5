// Package rollout may import store.
package rollout

import "github.com/gantryd/gantry/store"

// Run is short.
func Run() string { return store.Get() }
