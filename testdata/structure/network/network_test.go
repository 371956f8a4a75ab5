package network

import "time"

func wait() { time.Sleep(1) }
