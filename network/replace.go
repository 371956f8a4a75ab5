package network

import (
	"errors"
	"os"
	"slices"
	"time"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/fault"
)

// The kernel changes from one generation of rules to the next at once, and yet no packet may meet a table that is being deleted:
// one that began on the old rules would find their sets empty, and be refused. So a table is replaced while another one, the deputy,
// does its work; and it is taken out of the packets' way first, and deleted when none is in it.

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

// standsIn reports whether there is a deputy.
func (r *ruleset) standsIn() (there bool) {
	_ = r.under(r.deputy(), func() error { there = r.exists(); return nil })
	return there
}

// replace writes the whole table anew. Both tables are in the packets' way for a moment: what either refuses is refused. A replacement
// that was cut short is taken up: the table that does the work stays until another one does.
func (r *ruleset) replace(m *model) error {
	renew := func() error {
		if err := r.retire(); err != nil {
			return err
		}
		return r.write(m)
	}
	hooks, err := r.hooks()
	if err != nil {
		return err
	}
	if len(hooks) > 0 {
		if err := r.under(r.deputy(), renew); err != nil {
			return err
		}
	}
	if err := renew(); err != nil {
		return err
	}
	return r.under(r.deputy(), r.retire)
}

// write makes the table, which is not there.
func (r *ruleset) write(m *model) error {
	if err := r.base(); err != nil {
		return err
	}
	r.collect(compare(&model{}, m))
	return r.commit()
}

// retire deletes the table, if it is there, when no packet is in it any more. Somebody else may delete it too.
func (r *ruleset) retire() error {
	hooks, err := r.hooks()
	if err != nil || len(hooks) == 0 && !r.exists() {
		return err
	}
	for _, c := range hooks {
		r.conn.FlushChain(c)
		r.conn.DelChain(c)
	}
	if err := r.commit(); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	awaitPackets()
	r.conn.DelTable(r.table)
	if err := r.commit(); !errors.Is(err, os.ErrNotExist) {
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

// awaitPackets waits until every packet that is on its way through the kernel's rules now has left them. A kernel that keeps some
// processors free of its own work (nohz_full) cannot tell.
func awaitPackets() {
	const global = 1 // MEMBARRIER_CMD_GLOBAL waits for the readers of RCU, of which packets are
	if _, _, errno := unix.Syscall(unix.SYS_MEMBARRIER, global, 0, 0); errno != 0 {
		time.Sleep(100 * time.Millisecond)
	}
}
