// Package engine imports what it must not and is too long.
package engine

import "github.com/gantryd/gantry/store"

// Long is a long function.
func Long() string {
	a := store.Name
	a += "1"
	a += "2"
	a += "3"
	a += "4"
	a += "5"
	a += "6"
	a += "7"
	a += "8"
	a += "9"
	a += "10"
	a += "11"
	a += "12"
	a += "13"
	a += "14"
	a += "15"
	a += "16"
	a += "17"
	a += "18"
	a += "19"
	a += "20"
	return a
}
