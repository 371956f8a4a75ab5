// Package store may import etcd.
package store

import _ "go.etcd.io/etcd/client/v3"

// Name is documented.
const Name = "store"

// Get is short.
func Get() string { return Name }
