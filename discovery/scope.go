package discovery

import (
	"maps"
	"net/netip"
	"slices"
	"strings"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
)

// State is all there is to know: every service of the cluster with its instances, and the networks.
type State struct {
	Endpoints []*gantryv1.ServiceEndpoints
	Networks  []*gantryv1.Network
	// Upstreams has the name servers of instances that are to ask others than the host's, "192.0.2.1" or "192.0.2.1:53".
	Upstreams map[string][]string
}

// Answers' lifetimes in seconds. A virtual address stays with its service; members come and go.
const (
	ttlVirtual = 60
	ttlMembers = 1
)

// snapshot is what one moment's answers come from. It never changes; Apply puts the next one in its place.
type snapshot struct {
	members  map[netip.Addr]*member // by address: containers, which ask, and virtual addresses, which are asked for
	apps     map[appKey]*app
	networks map[string][]*app // by network key: the apps with a service in it
	internal map[string]bool   // by network key
	// upstreams has instances' own name servers, by instance.
	upstreams map[string][]string
	// mixed is true if an address has several owners, so that one cannot simply be taken away.
	mixed bool
}

type appKey struct{ environment, name string }

func newSnapshot() *snapshot {
	return &snapshot{members: map[netip.Addr]*member{}, apps: map[appKey]*app{}, networks: map[string][]*app{}, internal: map[string]bool{}}
}

// app is one app's names, without app and environment. It is built anew only when one of its services changed.
type app struct {
	appKey
	services []*service
	names    map[string][]candidate
	members  map[netip.Addr]*member
}

// candidate is one service that a name may mean. A service of another app answers to a bare name only in the network that
// gives it the name.
type candidate struct {
	service *service
	network string // of an alias; empty: any network of the service
	answer  *answers
}

// answers to one name, encoded once.
type answers struct{ v4, v6 section }

// service is one service as names see it.
type service struct {
	app      *app
	name     string
	networks []string // keys, sorted; only those of its own environment
	source   *gantryv1.ServiceEndpoints
}

// member is who has an address.
type member struct {
	service  *service
	host     string // its name inside of the app: "2.db", or "db" for the virtual address
	instance string // empty for the virtual address
}

// shares reports whether two services have a network in common.
func (s *service) shares(o *service) bool {
	i, j := 0, 0
	for i < len(s.networks) && j < len(o.networks) {
		switch strings.Compare(s.networks[i], o.networks[j]) {
		case 0:
			return true
		case -1:
			i++
		default:
			j++
		}
	}
	return false
}

func (s *service) in(network string) bool {
	_, found := slices.BinarySearch(s.networks, network)
	return found
}

// sees reports whether a service may be told of a candidate.
func (s *service) sees(c candidate) bool {
	if s.app.environment != c.service.app.environment {
		return false
	}
	if c.network != "" {
		return s.in(c.network)
	}
	return s == c.service || s.shares(c.service)
}

// Apply replaces what is known. It keeps what it is given, which must not be changed afterwards. Apps whose services are the
// same as before keep their names and encoded answers.
func (s *Server) Apply(st State) {
	s.applyMu.Lock()
	defer s.applyMu.Unlock()
	groups := map[appKey][]*gantryv1.ServiceEndpoints{}
	for _, e := range st.Endpoints {
		k := appKey{strings.ToLower(e.Environment), strings.ToLower(e.App)}
		groups[k] = append(groups[k], e)
	}
	old := s.known.Load()
	fresh, gone := map[appKey]*app{}, map[appKey]*app{}
	for k, endpoints := range groups {
		was := old.apps[k]
		switch {
		case was == nil || !was.describes(endpoints):
			fresh[k] = newApp(k, endpoints)
		case old.mixed:
			fresh[k] = was
		}
	}
	for k, a := range old.apps {
		if fresh[k] != nil || groups[k] == nil {
			gone[k] = a
		}
	}
	s.known.Store(old.next(st, fresh, gone))
}

// next is the snapshot after apps have gone and others have come, perhaps in their place.
func (n *snapshot) next(st State, fresh, gone map[appKey]*app) *snapshot {
	next := newSnapshot()
	for _, network := range st.Networks {
		next.internal[network.GetMeta().GetKey()] = network.Internal
	}
	next.upstreams = st.Upstreams
	if n.mixed {
		gone = nil // everything comes anew
	} else {
		next.members, next.apps, next.networks = maps.Clone(n.members), maps.Clone(n.apps), maps.Clone(n.networks)
	}
	for k, a := range gone {
		delete(next.apps, k)
		next.remove(a)
	}
	for _, a := range fresh {
		next.add(a)
	}
	return next
}

func (n *snapshot) remove(a *app) {
	for address := range a.members {
		delete(n.members, address)
	}
	for _, network := range a.networks() {
		n.networks[network] = slices.DeleteFunc(slices.Clone(n.networks[network]), func(o *app) bool { return o == a })
		if len(n.networks[network]) == 0 {
			delete(n.networks, network)
		}
	}
}

func (n *snapshot) add(a *app) {
	n.apps[a.appKey] = a
	for address, m := range a.members {
		n.mixed = n.mixed || n.members[address] != nil
		n.members[address] = m
	}
	for _, network := range a.networks() {
		apps := append(slices.Clone(n.networks[network]), a)
		slices.SortFunc(apps, func(a, b *app) int { return strings.Compare(a.name, b.name) })
		n.networks[network] = apps
	}
}

// networks lists the networks that services of the app are in, each once.
func (a *app) networks() []string {
	var all []string
	for _, s := range a.services {
		all = append(all, s.networks...)
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// admit enters who has the addresses of a service.
func (a *app) admit(s *service) {
	if vip, err := netip.ParseAddr(s.source.VirtualIp); err == nil {
		a.members[vip] = &member{service: s, host: s.name}
	}
	for _, ep := range s.source.Endpoints {
		for _, address := range addressesOf(ep) {
			a.members[address] = &member{s, s.host(ep), ep.Instance}
		}
	}
}

// host is the name of one instance.
func (s *service) host(ep *gantryv1.Endpoint) string {
	if ep.Slot == 0 {
		return s.name
	}
	return slotText(ep.Slot) + "." + s.name
}

func newApp(k appKey, endpoints []*gantryv1.ServiceEndpoints) *app {
	a := &app{appKey: k, names: map[string][]candidate{}, members: map[netip.Addr]*member{}}
	endpoints = slices.Clone(endpoints)
	slices.SortFunc(endpoints, func(x, y *gantryv1.ServiceEndpoints) int { return strings.Compare(x.Service, y.Service) })
	for _, e := range endpoints {
		s := &service{app: a, name: strings.ToLower(e.Name), networks: networksOf(e), source: e}
		a.services = append(a.services, s)
		a.nameService(s)
		a.admit(s)
	}
	return a
}

// networksOf lists the networks of a service. One of another environment does not count, whatever the endpoints say.
func networksOf(e *gantryv1.ServiceEndpoints) []string {
	var keys []string
	for _, at := range e.Attachments {
		if env, _, _ := strings.Cut(at.Network, "/"); env == e.Environment {
			keys = append(keys, at.Network)
		}
	}
	slices.Sort(keys)
	return slices.Compact(keys)
}

// nameService enters all names of a service.
func (a *app) nameService(s *service) {
	all, ready := split(s.source.Endpoints)
	own := addresses(ttlMembers, ready)
	if vip, err := netip.ParseAddr(s.source.VirtualIp); err == nil {
		own = addresses(ttlVirtual, []netip.Addr{vip})
	} else if s.source.App == "" {
		own = addresses(ttlMembers, all) // one container: its name is its address, ready or not
	}
	a.enter(s.name, candidate{service: s, answer: own})
	a.enter("tasks."+s.name, candidate{service: s, answer: addresses(ttlMembers, ready)})
	a.enter("primary."+s.name, candidate{service: s, answer: nil})
	for slot, addrs := range bySlot(s.source.Endpoints) {
		c := candidate{service: s, answer: addresses(ttlMembers, addrs)}
		a.enter(slot+"."+s.name, c)
		a.enter(s.name+"."+slot, c)
	}
	for _, at := range s.source.Attachments {
		for _, alias := range at.Aliases {
			if alias = strings.ToLower(alias); alias != s.name && s.in(at.Network) {
				a.enter(alias, candidate{service: s, network: at.Network, answer: own})
			}
		}
	}
}

func (a *app) enter(name string, c candidate) { a.names[name] = append(a.names[name], c) }

func addresses(ttl uint32, addrs []netip.Addr) *answers {
	var v4, v6 []netip.Addr
	for _, a := range addrs {
		if a.Is4() {
			v4 = append(v4, a)
		} else {
			v6 = append(v6, a)
		}
	}
	return &answers{addressSection(ttl, v4), addressSection(ttl, v6)}
}

// split lists the addresses of all and of ready instances.
func split(eps []*gantryv1.Endpoint) (all, ready []netip.Addr) {
	for _, ep := range eps {
		addrs := addressesOf(ep)
		all = append(all, addrs...)
		if ep.Ready {
			ready = append(ready, addrs...)
		}
	}
	return all, ready
}

func addressesOf(ep *gantryv1.Endpoint) []netip.Addr {
	var out []netip.Addr
	for _, text := range []string{ep.Address, ep.Address6} {
		if a, err := netip.ParseAddr(text); err == nil {
			out = append(out, a)
		}
	}
	return out
}

// bySlot lists the addresses that slots have. During an update a slot may have two instances: the ready one counts then.
func bySlot(eps []*gantryv1.Endpoint) map[string][]netip.Addr {
	chosen := map[int32]*gantryv1.Endpoint{}
	for _, ep := range eps {
		if old := chosen[ep.Slot]; ep.Slot > 0 && (old == nil || ep.Ready && !old.Ready) {
			chosen[ep.Slot] = ep
		}
	}
	out := map[string][]netip.Addr{}
	for slot, ep := range chosen {
		if addrs := addressesOf(ep); len(addrs) > 0 {
			out[slotText(slot)] = addrs
		}
	}
	return out
}

// describes reports whether the app was made of the same endpoints.
func (a *app) describes(endpoints []*gantryv1.ServiceEndpoints) bool {
	if len(a.services) != len(endpoints) {
		return false
	}
	was := make(map[string]*gantryv1.ServiceEndpoints, len(a.services))
	for _, s := range a.services {
		was[s.source.Service] = s.source
	}
	for _, e := range endpoints {
		if old := was[e.Service]; old == nil || !same(old, e) {
			return false
		}
	}
	return true
}

// same compares what names depend on. It is proto.Equal for that part, many times faster.
func same(a, b *gantryv1.ServiceEndpoints) bool {
	if a == b {
		return true
	}
	return a.Name == b.Name && a.VirtualIp == b.VirtualIp && a.Environment == b.Environment && a.App == b.App &&
		slices.EqualFunc(a.Endpoints, b.Endpoints, sameEndpoint) && slices.EqualFunc(a.Attachments, b.Attachments, sameAttachment)
}

func sameEndpoint(a, b *gantryv1.Endpoint) bool {
	return a == b || a.Instance == b.Instance && a.Slot == b.Slot && a.Ready == b.Ready && a.Address == b.Address && a.Address6 == b.Address6
}

func sameAttachment(a, b *gantryv1.NetworkAttachment) bool {
	return a.Network == b.Network && slices.Equal(a.Aliases, b.Aliases)
}
