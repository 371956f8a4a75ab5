// Package server imports agent.
package server

import _ "github.com/gantryd/gantry/agent"

func a() {
	_ = 1
}

func b() {
	_ = 1
}
