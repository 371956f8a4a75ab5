// Package schedule is imported.
package schedule

func a() { _ = 1 }
func b() { _ = 1 }
