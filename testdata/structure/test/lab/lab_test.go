// Package lab may sleep.
package lab

import (
	"time"

	_ "go.etcd.io/etcd/client/v3"
)

func wait() { time.Sleep(1) }
