package network

import (
	"errors"
	"fmt"
	"hash/fnv"
	"net/netip"
	"slices"
	"sync/atomic"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/fault"
	"github.com/gantryd/gantry/network/overlay"
)

// tableOptions is what the table's fixed rules depend on.
type tableOptions struct {
	bridge            string
	group             uint32
	gateway, gateway6 netip.Addr
	subnet, virtual   netip.Prefix
	subnet6           netip.Prefix
	overlay           string // device to other nodes, "" if there is none
	vxlan             uint16 // UDP port of packets between nodes that nobody signs, 0 if there are none
}

func (n *Network) tableOptions() tableOptions {
	o := tableOptions{bridge: n.opts.Bridge, group: n.group, gateway: n.Gateway(), gateway6: n.Gateway6(),
		subnet: n.opts.Subnet, virtual: n.opts.VirtualIPs, subnet6: n.opts.Subnet6}
	if !n.opts.alone() {
		o.overlay = overlayDevice(n.opts.Bridge)
	}
	if n.opts.Overlay == overlay.VXLAN {
		o.vxlan = n.opts.overlayPort()
	}
	return o
}

// rulesVersion changes with the fixed rules, so that a daemon knows those of an older one.
const rulesVersion = 4

// marker is the name of a chain that says which fixed rules the table has.
func (o tableOptions) marker() string {
	h := fnv.New32a()
	fmt.Fprintln(h, rulesVersion, o.bridge, o.group, o.gateway, o.gateway6, o.subnet, o.virtual, o.subnet6, o.overlay, o.vxlan)
	return fmt.Sprintf("rules.%08x", h.Sum32())
}

// ruleset is our nftables table. Its caller serialises writes.
type ruleset struct {
	tableOptions
	conn  *nftables.Conn
	table *nftables.Table
	sets  sets
	turns turnTable
	port  atomic.Uint32 // netlink port of conn: events that carry another one are somebody else's doing
}

// sets holds what changes, besides the maps of turns; rules are fixed, but for one per service and published port and two
// per segment.
type sets struct {
	segments, segments6     *nftables.Set // container : chain of its segment
	containers, containers6 *nftables.Set // container
	internal, internal6     *nftables.Set // container
	hairpins                *nftables.Set // container . container
	services                *nftables.Set // virtual address : chain
	ports                   *nftables.Set // protocol . port : chain
	hostPorts               *nftables.Set // address . protocol . port : chain
	nodes, nodes6           *nftables.Set // other nodes' addresses
	gateways, gateways6     *nftables.Set // other nodes' addresses on the containers' side
}

func (s *sets) all() []*nftables.Set {
	return []*nftables.Set{s.segments, s.segments6, s.containers, s.containers6, s.internal, s.internal6, s.hairpins, s.services, s.ports, s.hostPorts,
		s.nodes, s.nodes6, s.gateways, s.gateways6}
}

// netlinkBuffer holds the largest transaction: a node with thousands of services that writes its table anew.
const netlinkBuffer = 64 << 20

func openRuleset(o tableOptions) (*ruleset, error) {
	r := &ruleset{tableOptions: o, turns: newTurnTable()}
	if err := r.connect(); err != nil {
		return nil, err
	}
	r.table = &nftables.Table{Name: o.bridge, Family: nftables.TableFamilyINet}
	r.sets = newSets(r.table)
	return r, nil
}

func (r *ruleset) connect() error {
	c, err := nftables.New(nftables.AsLasting(), nftables.WithSockOptions(r.prepareSocket))
	if err != nil {
		return fault.Wrap(fault.Unsupported, err, "open nftables").WithHint("modprobe nf_tables")
	}
	r.conn = c
	return nil
}

func (r *ruleset) prepareSocket(c *netlink.Conn) error {
	if err := errors.Join(c.SetWriteBuffer(netlinkBuffer), c.SetReadBuffer(netlinkBuffer)); err != nil {
		return err
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	return raw.Control(func(fd uintptr) {
		if sa, err := unix.Getsockname(int(fd)); err == nil {
			r.port.Store(sa.(*unix.SockaddrNetlink).Pid)
		}
	})
}

func newSets(t *nftables.Table) sets {
	set := func(name string, key ...nftables.SetDatatype) *nftables.Set {
		return &nftables.Set{Table: t, Name: name, KeyType: nftables.MustConcatSetType(key...), Concatenation: len(key) > 1}
	}
	to := func(s *nftables.Set, data nftables.SetDatatype) *nftables.Set {
		s.IsMap, s.DataType = true, data
		return s
	}
	ip, ip6 := nftables.TypeIPAddr, nftables.TypeIP6Addr
	proto, port := nftables.TypeInetProto, nftables.TypeInetService
	return sets{
		segments: to(set("segments", ip), nftables.TypeVerdict), segments6: to(set("segments6", ip6), nftables.TypeVerdict),
		containers: set("containers", ip), containers6: set("containers6", ip6),
		internal: set("internal", ip), internal6: set("internal6", ip6), hairpins: set("hairpins", ip, ip),
		services:  to(set("services", ip), nftables.TypeVerdict),
		ports:     to(set("ports", proto, port), nftables.TypeVerdict),
		hostPorts: to(set("host-ports", ip, proto, port), nftables.TypeVerdict),
		nodes:     set("nodes", ip), nodes6: set("nodes6", ip6), gateways: set("gateways", ip), gateways6: set("gateways6", ip6),
	}
}

func (r *ruleset) close() { _ = r.conn.CloseLasting() }

// commit sends what was collected as one transaction.
func (r *ruleset) commit() error {
	err := r.conn.Flush()
	if err == nil {
		return nil
	}
	return fault.Wrap(fault.Internal, r.reconnected(err), "write the nftables table %s", r.bridge).
		WithHint("nft list table inet %s shows what is there", r.bridge)
}

// reconnected opens another connection after a failure: answers to what failed may still come, and would be taken for those to
// what follows.
func (r *ruleset) reconnected(err error) error {
	r.close()
	return errors.Join(err, r.connect())
}

func (r *ruleset) exists(table string) bool {
	_, err := r.conn.ListTableOfFamily(table, nftables.TableFamilyINet)
	return err == nil
}

// ensureBase makes the table with its fixed rules if there is none. One that is there may be in use and is left alone until the first
// Apply replaces it; if its rules are others than ours, nothing passes between nodes until then.
func (r *ruleset) ensureBase() error {
	for _, name := range []string{r.bridge, r.deputy()} {
		hooks, err := r.hooks(name)
		if err != nil {
			return err
		}
		if len(hooks) > 0 {
			return r.under(name, r.beOnGuard)
		}
	}
	return r.replace(&model{})
}

// beOnGuard lets nothing pass between nodes if the table has other rules than ours.
func (r *ruleset) beOnGuard() error {
	if _, err := r.conn.ListChain(r.table, r.marker()); err == nil || r.overlay == "" {
		return nil
	}
	r.chain("guard", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, nftables.ChainPriorityRaw, join(fromDevice(r.overlay), drop()))
	return r.commit()
}

func (r *ruleset) remove() error { return errors.Join(r.retire(r.deputy()), r.retire(r.bridge)) }

// base collects the table's sets and fixed rules.
func (r *ruleset) base() error {
	r.turns = newTurnTable()
	r.conn.AddTable(r.table)
	for _, s := range r.sets.all() {
		if err := r.conn.AddSet(s, nil); err != nil {
			return fault.Wrap(fault.Internal, err, "make the set %s", s.Name)
		}
	}
	r.branch(r.marker())
	r.translation()
	r.filters()
	return nil
}

// chain adds a base chain with its rules.
func (r *ruleset) chain(name string, kind nftables.ChainType, hook *nftables.ChainHook, prio *nftables.ChainPriority, rules ...rule) {
	policy := nftables.ChainPolicyAccept
	r.fill(&nftables.Chain{Name: name, Table: r.table, Type: kind, Hooknum: hook, Priority: prio, Policy: &policy}, rules)
}

// branch adds a chain that others jump to.
func (r *ruleset) branch(name string, rules ...rule) {
	r.fill(&nftables.Chain{Name: name, Table: r.table}, rules)
}

func (r *ruleset) fill(c *nftables.Chain, rules []rule) {
	r.conn.AddChain(c)
	for _, rule := range rules {
		if len(rule) > 0 {
			r.conn.AddRule(&nftables.Rule{Table: r.table, Chain: c, Exprs: rule})
		}
	}
}

// translation is where connections get their real destination and, on the way out, a source that can be answered.
func (r *ruleset) translation() {
	services := join(ipv4(), rule{destination4(regA), dispatch(regA, r.sets.services)})
	proto := meta(expr.MetaKeyL4PROTO, regB)
	onAddress := join(ipv4(), localDestination(), rule{destination4(regA), proto, destinationPort(regC), dispatch(regA, r.sets.hostPorts)})
	onAny := join(ipv4(), localDestination(), rule{meta(expr.MetaKeyL4PROTO, regA), destinationPort(regB), dispatch(regA, r.sets.ports)})
	// Questions of containers go to our name server even when somebody publishes port 53.
	toResolver := join(fromOurs(r.group), ipv4(), within(destination4, single(r.gateway)), r.portDNS(), accept())

	r.chain("destination", nftables.ChainTypeNAT, nftables.ChainHookPrerouting, nftables.ChainPriorityNATDest,
		toResolver, join(fromOurs(r.group), services), onAddress, onAny)
	r.chain("local-destination", nftables.ChainTypeNAT, nftables.ChainHookOutput, nftables.ChainPriorityNATDest,
		services, onAddress, onAny)
	r.chain("source", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, nftables.ChainPriorityNATSource,
		// A container that reaches itself through a virtual address would see a packet from itself.
		join(toOurs(r.group), ipv4(), rule{source4(regA), destination4(regB), inSet(regA, r.sets.hairpins)}, sourceTo(r.gateway)),
		join(toOurs(r.group), ipv4(), within(source4, netip.MustParsePrefix("127.0.0.0/8")), sourceTo(r.gateway)),
		r.sourceToNodes(),
		r.publishedToNodes(),
		join(notToOurs(r.group), ipv4(), within(source4, r.subnet), masquerade()),
		r.masquerade6())
}

// sourceToNodes gives clients from the outside, and this machine's own processes, an address that other nodes answer to us.
func (r *ruleset) sourceToNodes() rule {
	if r.overlay == "" {
		return nil
	}
	outside := append(rule{source4(reg1)}, prefix(reg1, r.subnet, expr.CmpOpNeq)...)
	return join(toDevice(r.overlay), ipv4(), outside, sourceTo(r.gateway))
}

// publishedToNodes does the same for containers of this node that use a published port: the other node would take them for
// strangers of the network that the instance is in. By a virtual address they come in their own name.
func (r *ruleset) publishedToNodes() rule {
	if r.overlay == "" {
		return nil
	}
	return join(toDevice(r.overlay), ipv4(), destinationTranslated(), r.notVirtual(), sourceTo(r.gateway))
}

// notVirtual matches connections that were not made to a virtual address.
func (r *ruleset) notVirtual() rule {
	direct := rule{originalDestination(reg1)}
	if r.virtual.IsValid() {
		direct = append(direct, prefix(reg1, r.virtual, expr.CmpOpNeq)...)
	}
	return direct
}

func (r *ruleset) portDNS() rule { return rule{destinationPort(reg1), equals(reg1, []byte{0, 53})} }

func (r *ruleset) masquerade6() rule {
	if !r.subnet6.IsValid() {
		return nil
	}
	return join(notToOurs(r.group), ipv6(), within(source6, r.subnet6), masquerade())
}

// filters is who may talk to whom.
func (r *ruleset) filters() {
	r.chain("forged", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, nftables.ChainPriorityRaw,
		r.carrier4(), r.carrier6(), r.noCarrier(),
		join(notFromOurs(r.group), accept()),
		// route_localnet lets replies for 127.0.0.1 in; nothing may use it to reach the host's own loopback.
		join(ipv4(), within(destination4, netip.MustParsePrefix("127.0.0.0/8")), drop()),
		join(forgedSource(), drop()))
	r.untracked()
	// TCP gets a reset, which the kernel does not ration as it does ICMP.
	r.branch("refuse", join(protocol(protoTCP), reset()), unreachable(unix.NFT_REJECT_ICMPX_ADMIN_PROHIBITED))
	r.branch("absent", join(protocol(protoTCP), reset()), unreachable(unix.NFT_REJECT_ICMPX_PORT_UNREACH))
	r.branch("from", r.fromContainers()...)
	r.branch("to", join(destinationTranslated(), accept()), drop())
	r.chain("forward", nftables.ChainTypeFilter, nftables.ChainHookForward, nftables.ChainPriorityFilter,
		join(established(), accept()),
		join(fromOurs(r.group), verdict(expr.VerdictJump, "from")),
		join(toOurs(r.group), verdict(expr.VerdictJump, "to")),
		join(toDevice(r.bridge), drop()))
	r.chain("input", nftables.ChainTypeFilter, nftables.ChainHookInput, nftables.ChainPriorityFilter, r.toHost()...)
	r.chain("output", nftables.ChainTypeFilter, nftables.ChainHookOutput, nftables.ChainPriorityFilter, r.fromHost()...)
}

// carrier4 and carrier6 take the overlay's packets from the nodes we know, if they come the way that leads there. Nobody
// needs to track them: what they carry is.
func (r *ruleset) carrier4() rule {
	return r.carrier(ipv4(), rule{source4(regA), inSet(regA, r.sets.nodes)})
}

func (r *ruleset) carrier6() rule {
	return r.carrier(ipv6(), rule{source6(reg1), inSet(reg1, r.sets.nodes6)})
}

func (r *ruleset) carrier(family, known rule) rule {
	if r.vxlan == 0 {
		return nil
	}
	return join(r.toCarrier(), localDestination(), family, known, routedBack(), rule{&expr.Notrack{}}, accept())
}

// untracked keeps the packets that we send to nodes from being tracked: each connection in them would be there twice.
func (r *ruleset) untracked() {
	if r.vxlan == 0 {
		return
	}
	r.chain("untracked", nftables.ChainTypeFilter, nftables.ChainHookOutput, nftables.ChainPriorityRaw,
		join(r.toCarrier(), ipv4(), rule{destination4(regA), inSet(regA, r.sets.nodes)}, rule{&expr.Notrack{}}),
		join(r.toCarrier(), ipv6(), rule{destination6(reg1), inSet(reg1, r.sets.nodes6)}, rule{&expr.Notrack{}}))
}

// noCarrier drops the overlay's packets of all others.
func (r *ruleset) noCarrier() rule {
	if r.vxlan == 0 {
		return nil
	}
	return join(r.toCarrier(), localDestination(), drop())
}

func (r *ruleset) toCarrier() rule {
	return join(protocol(protoUDP), rule{destinationPort(reg1), equals(reg1, binaryutil.BigEndian.PutUint16(r.vxlan))})
}

func (r *ruleset) fromContainers() []rule {
	return slices.Concat(r.fromEverywhere(), r.fromNodes(), r.fromHere())
}

// fromEverywhere is what holds for containers of this node and of others alike.
func (r *ruleset) fromEverywhere() []rule {
	return []rule{
		join(ctState(expr.CtStateBitINVALID), drop()),
		join(ipv4(), rule{source4(regA), dispatch(regA, r.sets.segments)}),
		join(ipv6(), rule{source6(reg1), dispatch(reg1, r.sets.segments6)}),
		join(ipv4(), rule{source4(regA), inSet(regA, r.sets.internal)}, refuse()),
		join(ipv6(), rule{source6(reg1), inSet(reg1, r.sets.internal6)}, refuse()),
		// What reaches the bridge has no container: a virtual address without a ready instance, or one that is gone.
		join(toDevice(r.bridge), absent()),
	}
}

// fromNodes is what else may come from other nodes: their processes, and clients of ports that they publish. Nothing goes
// through us to somewhere else.
func (r *ruleset) fromNodes() []rule {
	if r.overlay == "" {
		return nil
	}
	here := append(rule{meta(expr.MetaKeyOIFNAME, reg1)}, differs(reg1, deviceName(r.overlay)))
	return []rule{
		join(fromDevice(r.overlay), toOurs(r.group), here, ipv4(), rule{source4(regA), inSet(regA, r.sets.gateways)}, accept()),
		join(fromDevice(r.overlay), toOurs(r.group), here, ipv6(), rule{source6(reg1), inSet(reg1, r.sets.gateways6)}, accept()),
		join(fromDevice(r.overlay), refuse()),
	}
}

// fromHere is what else containers of this node may do.
func (r *ruleset) fromHere() []rule {
	return []rule{
		r.notCarrier4(), r.notCarrier6(),
		r.publishedByOthers(),
		join(toOurs(r.group), refuse()),
		// A container of another node, whatever way leads there.
		join(ipv4(), rule{destination4(regA), inSet(regA, r.sets.containers)}, refuse()),
		join(ipv6(), rule{destination6(reg1), inSet(reg1, r.sets.containers6)}, refuse()),
		accept(),
	}
}

// notCarrier4 and notCarrier6 keep containers from sending the overlay's packets themselves: masqueraded, they would come
// from a node that the others know.
func (r *ruleset) notCarrier4() rule {
	if r.vxlan == 0 {
		return nil
	}
	return join(r.toCarrier(), ipv4(), rule{destination4(regA), inSet(regA, r.sets.nodes)}, drop())
}

func (r *ruleset) notCarrier6() rule {
	if r.vxlan == 0 {
		return nil
	}
	return join(r.toCarrier(), ipv6(), rule{destination6(reg1), inSet(reg1, r.sets.nodes6)}, drop())
}

// publishedByOthers accepts what a container sent to a published port of the node: published is public.
func (r *ruleset) publishedByOthers() rule {
	return join(toOurs(r.group), ipv4(), destinationTranslated(), r.notVirtual(), accept())
}

// toHost keeps containers of internal networks from the host, but for its name server.
func (r *ruleset) toHost() []rule {
	rules := []rule{
		join(notFromOurs(r.group), accept()),
		join(established(), accept()),
		r.ping4(), r.ping6(), r.notToHost(),
		join(ipv4(), within(destination4, single(r.gateway)), r.dns(protoUDP), accept()),
		join(ipv4(), within(destination4, single(r.gateway)), r.dns(protoTCP), accept()),
	}
	if r.gateway6.IsValid() {
		rules = append(rules,
			join(ipv6(), within(destination6, single(r.gateway6)), r.dns(protoUDP), accept()),
			join(ipv6(), within(destination6, single(r.gateway6)), r.dns(protoTCP), accept()))
	}
	return append(rules,
		join(ipv4(), rule{source4(regA), inSet(regA, r.sets.internal)}, refuse()),
		join(ipv6(), rule{source6(reg1), inSet(reg1, r.sets.internal6)}, refuse()))
}

// ping4 and ping6 let nodes see by their gateways whether the overlay works.
func (r *ruleset) ping4() rule {
	if r.overlay == "" {
		return nil
	}
	return join(fromDevice(r.overlay), ipv4(), protocol(unix.IPPROTO_ICMP), rule{source4(regA), inSet(regA, r.sets.gateways)}, accept())
}

func (r *ruleset) ping6() rule {
	if r.overlay == "" {
		return nil
	}
	return join(fromDevice(r.overlay), ipv6(), protocol(unix.IPPROTO_ICMPV6), rule{source6(reg1), inSet(reg1, r.sets.gateways6)}, accept())
}

// notToHost keeps everything else of other nodes from this one's own processes: nodes talk to each other by their addresses.
func (r *ruleset) notToHost() rule {
	if r.overlay == "" {
		return nil
	}
	return join(fromDevice(r.overlay), drop())
}

func (r *ruleset) dns(proto uint8) rule { return join(protocol(proto), r.portDNS()) }

// fromHost answers the host's own processes for virtual addresses without a ready instance.
func (r *ruleset) fromHost() []rule {
	// Host and container share a device there and back, which the kernel takes for a detour to be told about.
	redirect := rule{&expr.Payload{DestRegister: reg1, Base: expr.PayloadBaseTransportHeader, Offset: 0, Len: 1}, equals(reg1, []byte{5})}
	rules := []rule{join(toOurs(r.group), ipv4(), protocol(unix.IPPROTO_ICMP), redirect, drop())}
	if r.virtual.IsValid() {
		rules = append(rules, join(ipv4(), within(destination4, r.virtual), absent()))
	}
	return rules
}
