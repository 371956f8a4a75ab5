package network

import _ "go.etcd.io/etcd/client/v3"

func Undocumented() {
	_ = 1
}

func init() {
}
