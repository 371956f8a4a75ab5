package store

import "github.com/google/btree"

// Fixed is a snapshot of the objects given, for those who try a decision out without a store.
func Fixed(objects ...Object) *ReadTx {
	r := &ReadTx{data: btree.NewG(32, less)}
	for _, o := range objects {
		r.data.ReplaceOrInsert(entry{path: pathOf(o, o.GetMeta().GetKey()), obj: o})
	}
	return r
}
