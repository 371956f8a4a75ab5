// Package agent imports server.
package agent

import _ "github.com/gantryd/gantry/server"

func a() {
	_ = 1
}

func b() {
	_ = 1
}
