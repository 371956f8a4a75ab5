package network

import (
	"errors"
	"os"
	"runtime"
	"slices"
	"time"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/fault"
)

// deputy is the name of the table that stands in for ours.
func (r *ruleset) deputy() string { return r.bridge + "-deputy" }

// under has f work on a table of another name.
func (r *ruleset) under(name string, f func() error) error {
	table, sets, turns := r.table, r.sets, r.turns
	defer func() { r.table, r.sets, r.turns = table, sets, turns }()
	r.table = &nftables.Table{Name: name, Family: nftables.TableFamilyINet}
	r.sets = newSets(r.table)
	return f()
}

// replace writes the whole table anew. The kernel goes from the old rules to the new ones at once, and yet nothing may be deleted in
// which a packet is: one that began on the old rules would find their sets empty, and be refused. So a deputy takes over from the
// old table, and the new table from the deputy; each is deleted when no packet is in it any more. A daemon that dies leaves one that
// does the work.
func (r *ruleset) replace(m *model) error {
	err := r.replaceOnce(m)
	if errors.Is(err, os.ErrNotExist) { // somebody removed a table in between
		err = r.replaceOnce(m)
	}
	return err
}

func (r *ruleset) replaceOnce(m *model) error {
	deputy := r.deputy()
	old, err := r.hooks(r.bridge)
	if err != nil {
		return err
	}
	if len(old) > 0 {
		if err := r.retire(deputy); err != nil {
			return err
		}
		if err := r.under(deputy, func() error { return r.collectAll(m) }); err != nil {
			return err
		}
		if err := r.unhook(old); err != nil {
			return err
		}
	}
	old, err = r.hooks(deputy)
	if err != nil {
		return err
	}
	if r.exists(r.bridge) {
		r.conn.DelTable(r.table)
	}
	if err := r.collectAll(m); err != nil {
		return err
	}
	if err := r.unhook(old); err != nil {
		return err
	}
	return r.retire(deputy)
}

// collectAll adds the whole table to the transaction.
func (r *ruleset) collectAll(m *model) error {
	err := r.base()
	r.collect(compare(&model{}, m))
	return err
}

// unhook writes the transaction, and with it takes the table of these hooks out of the packets' way; it waits until none is in it.
func (r *ruleset) unhook(hooks []*nftables.Chain) error {
	for _, c := range hooks {
		r.conn.FlushChain(c)
		r.conn.DelChain(c)
	}
	err := r.commit()
	if err == nil && len(hooks) > 0 {
		awaitPackets()
	}
	return err
}

// retire deletes a table, if it is there.
func (r *ruleset) retire(name string) error {
	hooks, err := r.hooks(name)
	if err != nil || !r.exists(name) {
		return err
	}
	if err := r.unhook(hooks); err != nil {
		return err
	}
	r.conn.DelTable(&nftables.Table{Name: name, Family: nftables.TableFamilyINet})
	return r.commit()
}

// hooks are the chains of a table through which packets come into it. One without them does nothing.
func (r *ruleset) hooks(table string) ([]*nftables.Chain, error) {
	all, err := r.conn.ListChainsOfTableFamily(nftables.TableFamilyINet)
	if err != nil {
		return nil, fault.Wrap(fault.Internal, r.reconnected(err), "list the chains of nftables")
	}
	strange := func(c *nftables.Chain) bool { return c.Table.Name != table || c.Hooknum == nil }
	return slices.DeleteFunc(all, strange), nil
}

// awaitPackets waits until every packet that is on its way through the kernel's rules now has left them. A kernel that keeps some
// processors free of its own work (nohz_full) cannot tell, and one with a single processor does not.
func awaitPackets() {
	const global = 1 // MEMBARRIER_CMD_GLOBAL waits for the readers of RCU, of which packets are
	if _, _, errno := unix.Syscall(unix.SYS_MEMBARRIER, global, 0, 0); errno != 0 || runtime.NumCPU() == 1 {
		time.Sleep(100 * time.Millisecond)
	}
}
