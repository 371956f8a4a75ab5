package agent

import (
	"context"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/gantryd/gantry/agent/nodelink"
	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/fault"
)

// follow keeps a session with a server, for as long as ctx lives. Without one the node goes on with what it knows.
func (a *Agent) follow(ctx context.Context) error {
	return nodelink.New(nodelink.Options{
		Server: a.o.Server, Hello: a.hello, Status: a.nodeStatus, Take: a.take, Outbox: a.reports,
		Refused: a.expelled, Lost: a.o.Lost, Logger: a.log,
	}).Run(ctx)
}

// expelled removes what runs here: the cluster has removed this node and runs it elsewhere. Named volumes stay. It is called
// with every try to get a session, and acts and says so once.
func (a *Agent) expelled(err error) {
	if a.out {
		return
	}
	a.out = true
	workers := a.all()
	if len(workers) > 0 {
		a.log.Error("this node was removed from its cluster: its containers are removed, with what they have written and their "+
			"anonymous volumes; named volumes stay", "containers", len(workers), "err", err)
	}
	for _, w := range workers {
		w.retire()
	}
	a.hear()
}

// hello tells a server everything: which node this is and how each of its instances is.
func (a *Agent) hello() *gantryv1.NodeReport {
	a.figures.Sessions.Add(1)
	r := &gantryv1.NodeReport{
		Hello: &gantryv1.NodeHello{Node: a.o.Node, Name: a.o.Name}, Status: a.nodeStatus(),
	}
	for _, w := range a.all() {
		r.Statuses = append(r.Statuses, w.status())
	}
	return r
}

func (a *Agent) nodeStatus() *gantryv1.NodeStatus {
	info := a.o.Info
	st := &gantryv1.NodeStatus{
		Meta: &gantryv1.Meta{Key: a.o.Node}, Clock: timestamppb.Now(), Os: info.GetOs(),
		NanoCpus: int64(info.GetCpus()) * 1e9, Memory: info.GetMemory(), Architecture: info.GetArch(),
		Kernel: info.GetKernel(), Version: info.GetVersion(), Devices: info.GetDevices(), Pids: info.GetPids(),
	}
	if a.o.CertificateEnd != nil {
		st.CertificateEnd = timestamppb.New(a.o.CertificateEnd())
	}
	if a.o.CertificateLife != nil {
		st.CertificateLife = durationpb.New(a.o.CertificateLife())
	}
	if a.o.SlowDisk != nil {
		if slow := a.o.SlowDisk(); slow > 0 {
			st.SlowDisk = durationpb.New(slow)
		}
	}
	if a.o.FullDisk != nil {
		if free, full := a.o.FullDisk(); full {
			st.DiskFull, st.DiskFree = true, free&^(16<<20-1) // in steps: each change of it is written and told
		}
	}
	if a.o.NoServer != nil {
		if err := a.o.NoServer(); err != nil {
			st.ServerError, st.ServerHint = err.Error(), fault.HintOf(err)
		}
	}
	return st
}

// take acts on one update: names and addresses first, so that an instance finds its services when it starts.
func (a *Agent) take(ctx context.Context, u *gantryv1.NodeUpdate) {
	if a.o.Heard != nil {
		a.o.Heard(u)
	}
	a.out = false
	if u.Full { // another server may lead, which knows of no image yet
		a.Images.Moved()
	}
	a.state.update(u)
	a.state.apply(ctx, a.log)
	defer a.hear() // recorded instances go on with what is wanted of them today
	named := map[string]bool{}
	for _, as := range u.Assignments {
		named[as.Instance.Meta.Key] = true
		a.assign(as)
	}
	for _, id := range u.Unassigned {
		a.unassign(id)
	}
	if !u.Full {
		return
	}
	for _, w := range a.all() {
		if !named[w.id] {
			w.retire()
		}
	}
}

// hear notes that a server has said how things are.
func (a *Agent) hear() {
	select {
	case <-a.told:
	default:
		close(a.told)
	}
}
