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

// guard is the chain that keeps a table with other rules than ours from passing anything between nodes.
const guard = "guard"

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
	hooks, err := r.hooks()
	if err != nil {
		return err
	}
	if working(hooks) {
		err := r.under(r.deputy(), func() error { return errors.Join(r.retire(), r.collectAll(m)) })
		if err = errors.Join(err, r.unhook(hooks)); err != nil {
			return err
		}
	}
	if r.exists() {
		r.conn.DelTable(r.table)
	}
	deputys := r.under(r.deputy(), func() error { hooks, err = r.hooks(); return err })
	if err := errors.Join(deputys, r.collectAll(m), r.unhook(hooks)); err != nil {
		return err
	}
	return r.under(r.deputy(), r.retire)
}

// collectAll adds the whole table to the transaction.
func (r *ruleset) collectAll(m *model) error {
	err := r.base()
	r.collect(compare(&model{}, m))
	return err
}

// unhook takes a table out of the packets' way, with all that the transaction has already, and waits until none is in it.
func (r *ruleset) unhook(hooks []*nftables.Chain) error {
	for _, c := range hooks {
		r.conn.FlushChain(c)
		r.conn.DelChain(c)
	}
	err := r.commit()
	if len(hooks) > 0 {
		awaitPackets()
	}
	return err
}

// retire deletes the table, if it is there. Somebody else may do so too.
func (r *ruleset) retire() error {
	hooks, err := r.hooks()
	if err != nil || !r.exists() {
		return err
	}
	err = r.unhook(hooks)
	r.conn.DelTable(r.table)
	if err = errors.Join(err, r.commit()); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// hooks are the chains of the table through which packets come into it.
func (r *ruleset) hooks() ([]*nftables.Chain, error) {
	all, err := r.conn.ListChainsOfTableFamily(nftables.TableFamilyINet)
	if err != nil {
		return nil, fault.Wrap(fault.Internal, err, "list the chains of nftables")
	}
	strange := func(c *nftables.Chain) bool { return c.Table.Name != r.table.Name || c.Hooknum == nil }
	return slices.DeleteFunc(all, strange), nil
}

// working reports whether a table with these hooks does more than to guard.
func working(hooks []*nftables.Chain) bool {
	return slices.ContainsFunc(hooks, func(c *nftables.Chain) bool { return c.Name != guard })
}

// awaitPackets waits until every packet that is on its way through the kernel's rules now has left them. A kernel that keeps some
// processors free of its own work (nohz_full) cannot tell, and one with a single processor does not.
func awaitPackets() {
	const global = 1 // MEMBARRIER_CMD_GLOBAL waits for the readers of RCU, of which packets are
	if _, _, errno := unix.Syscall(unix.SYS_MEMBARRIER, global, 0, 0); errno != 0 || runtime.NumCPU() == 1 {
		time.Sleep(100 * time.Millisecond)
	}
}
