package discovery

import (
	"bytes"
	"net/netip"

	"github.com/miekg/dns"
)

// outcome of a look-up.
type outcome int

const (
	unknown outcome = iota // no name of ours: somebody else may know it
	hidden                 // ours, and not for this asker, or of nobody
	found
)

// domain ends full names: "db.shop.production.gantry".
const domain = ".gantry"

// answer makes the reply to a message, or says that it is to be forwarded. A message without sense gets no reply at all.
func (s *Server) answer(m []byte, asker netip.Addr, udp bool, out []byte) (response []byte, forward bool) {
	if len(m) < headerSize || m[2]&0x80 != 0 {
		return nil, false
	}
	if !isQuery(m) {
		return failure(m, rcodeNotImp), false
	}
	var buf [256]byte
	q, ok := parse(m, buf[:])
	if !ok {
		return failure(m, rcodeFormErr), false
	}
	if !s.mayAsk(asker) {
		return failure(m, rcodeRefused), false
	}
	k := s.known.Load()
	from := k.members[asker]
	if q.class != classIN {
		return failure(m, rcodeRefused), false
	}
	records, what := k.find(from, q, s.turn.Load())
	switch {
	case what == found:
		return reply(out, m, q, records, 0, s.turn.Add(1), udp), false
	case what == hidden || !k.mayForward(from):
		return reply(out, m, q, section{}, rcodeNXDomain, 0, udp), false
	}
	return nil, true
}

// mayForward is false for instances of internal networks only: a question to the outside would carry data out.
func (k *snapshot) mayForward(from *member) bool {
	if from == nil || len(from.service.networks) == 0 {
		return true
	}
	for _, n := range from.service.networks {
		if !k.internal[n] {
			return true
		}
	}
	return false
}

// find looks a question up as one asker sees it.
func (k *snapshot) find(from *member, q question, turn uint32) (section, outcome) {
	if a, ok := reverse(q.name); ok {
		return k.pointer(from, a, q)
	}
	if from == nil {
		if bytes.HasSuffix(q.name, []byte(domain)) {
			return section{}, hidden
		}
		return section{}, unknown
	}
	a, what := k.resolve(from.service, q.name, turn)
	if what != found {
		return section{}, what
	}
	switch q.kind {
	case typeA, typeANY:
		return a.v4, found
	case typeAAAA:
		return a.v6, found
	}
	return section{}, found // the name exists, with no record of this type
}

// resolve finds what a name means to a service: a name of its own app, of a container without app, of another app in a
// shared network, "name.app", or "name.app.environment.gantry".
func (k *snapshot) resolve(from *service, name []byte, turn uint32) (*answers, outcome) {
	if full, ok := bytes.CutSuffix(name, []byte(domain)); ok {
		return k.resolveFull(from, full, turn)
	}
	env := from.app.environment
	if a, what := k.in(appKey{env, from.app.name}, from, name, turn); what != unknown {
		return a, what
	}
	if a, what := k.in(appKey{env, ""}, from, name, turn); what == found {
		return a, what
	}
	for _, network := range from.networks {
		for _, other := range k.networks[network] {
			if a, what := other.look(from, name, turn); what == found {
				return a, what
			}
		}
	}
	if i := bytes.LastIndexByte(name, '.'); i > 0 {
		return k.in(appKey{env, string(name[i+1:])}, from, name[:i], turn)
	}
	return nil, unknown
}

// resolveFull takes "name.app.environment", or "name.environment" for a container without app. No such name is anybody
// else's, so that what is not found does not exist.
func (k *snapshot) resolveFull(from *service, name []byte, turn uint32) (*answers, outcome) {
	i := bytes.LastIndexByte(name, '.')
	if i <= 0 || string(name[i+1:]) != from.app.environment {
		return nil, hidden
	}
	env, name := from.app.environment, name[:i]
	if i = bytes.LastIndexByte(name, '.'); i > 0 {
		if a, what := k.in(appKey{env, string(name[i+1:])}, from, name[:i], turn); what == found {
			return a, what
		}
	}
	a, what := k.in(appKey{env, ""}, from, name, turn)
	return a, max(what, hidden)
}

func (k *snapshot) in(key appKey, from *service, name []byte, turn uint32) (*answers, outcome) {
	a := k.apps[key]
	if a == nil {
		return nil, unknown
	}
	return a.look(from, name, turn)
}

// look finds a name of one app. Of several services with the same alias each has its turn.
func (a *app) look(from *service, name []byte, turn uint32) (*answers, outcome) {
	candidates := a.names[string(name)]
	if len(candidates) == 0 {
		return nil, unknown
	}
	for i := range candidates {
		c := candidates[(i+int(turn%uint32(len(candidates))))%len(candidates)]
		if c.answer != nil && from.sees(c) {
			return c.answer, found
		}
	}
	return nil, hidden
}

// pointer answers which name an address has.
func (k *snapshot) pointer(from *member, a netip.Addr, q question) (section, outcome) {
	m := k.members[a]
	if m == nil {
		return section{}, unknown
	}
	if from == nil || !from.service.sees(candidate{service: m.service}) {
		return section{}, hidden
	}
	if q.kind != typePTR {
		return section{}, found
	}
	name := m.host + "."
	if m.service.app.name != "" {
		name += m.service.app.name + "."
	}
	name += m.service.app.environment + domain + "."
	wire := make([]byte, 256)
	n, err := dns.PackDomainName(name, wire, 0, nil, false)
	if err != nil {
		return section{}, found
	}
	records := append(recordHead(typePTR, ttlMembers, n), wire[:n]...)
	return section{records: records, each: len(records)}, found
}

// reverse reads the address out of a name of in-addr.arpa or ip6.arpa.
func reverse(name []byte) (netip.Addr, bool) {
	if labels, ok := bytes.CutSuffix(name, []byte(".in-addr.arpa")); ok {
		var b [4]byte
		for i := 3; i >= 0; i-- {
			label, rest, more := bytes.Cut(labels, []byte{'.'})
			n, ok := octet(label)
			if !ok || more != (i > 0) {
				return netip.Addr{}, false
			}
			b[i], labels = n, rest
		}
		return netip.AddrFrom4(b), true
	}
	labels, ok := bytes.CutSuffix(name, []byte(".ip6.arpa"))
	if !ok || len(labels) != 63 {
		return netip.Addr{}, false
	}
	var b [16]byte
	for i := range 32 {
		n, ok := nibble(labels[2*i])
		if !ok || i < 31 && labels[2*i+1] != '.' {
			return netip.Addr{}, false
		}
		b[15-i/2] |= n << (4 * (i % 2))
	}
	return netip.AddrFrom16(b), true
}

func octet(label []byte) (byte, bool) {
	n := 0
	for _, c := range label {
		if c < '0' || c > '9' || len(label) > 3 {
			return 0, false
		}
		n = n*10 + int(c-'0')
	}
	return byte(n), len(label) > 0 && n < 256
}

func nibble(c byte) (byte, bool) {
	switch {
	case '0' <= c && c <= '9':
		return c - '0', true
	case 'a' <= c && c <= 'f':
		return c - 'a' + 10, true
	}
	return 0, false
}
