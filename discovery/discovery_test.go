package discovery

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sync/errgroup"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
)

// svc reads "prod/shop/db 10.96.0.1 nets=back,front alias=store 10.64.0.2 !10.64.0.3" (! marks an instance not ready).
func svc(line string) *gantryv1.ServiceEndpoints {
	field := strings.Fields(line)
	part := strings.Split(field[0], "/")
	e := &gantryv1.ServiceEndpoints{Service: field[0], Environment: part[0], App: part[1], Name: part[2]}
	var aliases []string
	for _, f := range field[1:] {
		switch {
		case strings.HasPrefix(f, "alias="):
			aliases = strings.Split(f[6:], ",")
		case strings.HasPrefix(f, "nets="):
			for _, n := range strings.Split(f[5:], ",") {
				e.Attachments = append(e.Attachments, &gantryv1.NetworkAttachment{Network: n})
			}
		case strings.HasPrefix(f, "10.96."):
			e.VirtualIp = f
		default:
			slot := int32(len(e.Endpoints) + 1)
			if e.App == "" {
				slot = 0
			}
			a := strings.TrimPrefix(f, "!")
			ep := &gantryv1.Endpoint{Slot: slot, Address: a, Ready: a == f}
			if slot == 2 {
				ep.Address6 = "fd00::" + a[strings.LastIndex(a, ".")+1:]
			}
			e.Endpoints = append(e.Endpoints, ep)
		}
	}
	for _, at := range e.Attachments {
		at.Aliases = aliases
	}
	return e
}

func state() State {
	return State{
		Endpoints: []*gantryv1.ServiceEndpoints{
			svc("prod/shop/db 10.96.0.1 nets=prod/shop/back alias=store 10.64.0.2 10.64.0.3 !10.64.0.4"),
			svc("prod/shop/web 10.96.0.2 nets=prod/shop/front,prod/shop/back 10.64.0.5"),
			svc("prod/shop/proxy 10.96.0.3 nets=prod/shop/front 10.64.0.6"),
			svc("prod/mail/db 10.96.0.4 nets=prod/shared 10.64.0.7"),
			svc("prod/mail/smtp 10.96.0.5 nets=prod/shared,prod/mail/default 10.64.0.8"),
			svc("prod/crm/app 10.96.0.6 nets=prod/shared 10.64.0.9"),
			svc("staging/shop/db 10.96.0.7 nets=staging/shop/back 10.64.0.10"),
			svc("staging/shop/thief 10.96.0.8 nets=staging/shop/back,prod/shop/back 10.64.0.11"),
			svc("prod//tool nets=prod/shop/back 10.64.0.12"),
			svc("prod/shop/vault 10.96.0.9 nets=prod/shop/cellar 10.64.0.13"),
			svc("prod/shop/loner 10.96.0.10 10.64.0.14"),
		},
		Networks: []*gantryv1.Network{{Meta: &gantryv1.Meta{Key: "prod/shop/cellar"}, Internal: true}},
	}
}

// start runs a server on its own port.
func start(t testing.TB, o Options) *Server {
	t.Helper()
	if o.Listen == nil {
		o.Listen = []netip.Addr{netip.MustParseAddr("127.0.0.1")}
	}
	s := listen(t, o)
	ctx, cancel := context.WithCancel(context.Background())
	var g errgroup.Group
	g.Go(func() error { return s.Run(ctx) })
	t.Cleanup(func() {
		cancel()
		if err := g.Wait(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// listen finds a port that is free for UDP and TCP.
func listen(t testing.TB, o Options) *Server {
	t.Helper()
	for range 20 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		o.Port = uint16(l.Addr().(*net.TCPAddr).Port)
		l.Close()
		if s, err := New(o); err == nil {
			return s
		}
	}
	t.Fatal("no free port")
	return nil
}

func (s *Server) address() string { return s.udp[0].LocalAddr().String() }

// askAs puts a question in the name of an address and returns the sorted answers, or what came instead.
func askAs(t testing.TB, s *Server, asker, name string, kind uint16) string {
	t.Helper()
	m := new(dns.Msg).SetQuestion(dns.Fqdn(name), kind)
	wire, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	reply, forward := s.answer(wire, netip.MustParseAddr(asker), true, nil)
	if forward {
		return "forward"
	}
	r := new(dns.Msg)
	if err := r.Unpack(reply); err != nil {
		t.Fatalf("%s: the reply %x cannot be read: %v", name, reply, err)
	}
	if r.Id != m.Id || !slices.Equal(r.Question, m.Question) {
		t.Fatalf("%s: the reply is to another question: %v", name, r)
	}
	return text(r)
}

func text(r *dns.Msg) string {
	if r.Rcode != dns.RcodeSuccess {
		return dns.RcodeToString[r.Rcode]
	}
	var out []string
	for _, rr := range r.Answer {
		switch rr := rr.(type) {
		case *dns.A:
			out = append(out, rr.A.String())
		case *dns.AAAA:
			out = append(out, rr.AAAA.String())
		case *dns.PTR:
			out = append(out, rr.Ptr)
		}
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}

func TestNamesAreAnsweredByWhoAsks(t *testing.T) {
	s, err := New(Options{})
	if err != nil {
		t.Fatal(err)
	}
	s.Apply(state())
	const web, proxy, mail, stagingDB, thief, tool, vault, loner, stranger = "10.64.0.5", "10.64.0.6", "10.64.0.8", "10.64.0.10",
		"10.64.0.11", "10.64.0.12", "10.64.0.13", "10.64.0.14", "10.64.0.99"
	for _, c := range []struct {
		asker, name string
		kind        uint16
		want        string
	}{
		{web, "db", dns.TypeA, "10.96.0.1"},
		{web, "DB", dns.TypeA, "10.96.0.1"},
		{web, "store", dns.TypeA, "10.96.0.1"},
		{web, "db", dns.TypeAAAA, ""},
		{web, "db", dns.TypeMX, ""},
		{web, "tasks.db", dns.TypeA, "10.64.0.2 10.64.0.3"},
		{web, "tasks.db", dns.TypeAAAA, "fd00::3"},
		{web, "1.db", dns.TypeA, "10.64.0.2"},
		{web, "db.3", dns.TypeA, "10.64.0.4"}, // not ready, and still itself
		{web, "4.db", dns.TypeA, "forward"},
		{web, "primary.db", dns.TypeA, "NXDOMAIN"},
		{web, "db.shop.prod.gantry", dns.TypeA, "10.96.0.1"},
		{web, "2.db.shop.prod.gantry", dns.TypeA, "10.64.0.3"},
		{web, "tasks.db.shop", dns.TypeA, "10.64.0.2 10.64.0.3"},
		{web, "web", dns.TypeA, "10.96.0.2"}, // itself
		{web, "tool", dns.TypeA, "10.64.0.12"},
		{web, "tool.prod.gantry", dns.TypeA, "10.64.0.12"},
		{web, "db.mail", dns.TypeA, "NXDOMAIN"}, // no shared network
		{web, "db.shop.staging.gantry", dns.TypeA, "NXDOMAIN"},
		{web, "nobody.gantry", dns.TypeA, "NXDOMAIN"},
		{web, "example.org", dns.TypeA, "forward"},
		{proxy, "db", dns.TypeA, "NXDOMAIN"},
		{proxy, "store", dns.TypeA, "NXDOMAIN"},
		{proxy, "web", dns.TypeA, "10.96.0.2"},
		{mail, "app.crm", dns.TypeA, "10.96.0.6"},
		{mail, "app", dns.TypeA, "10.96.0.6"}, // shared network, as in Compose
		{mail, "db", dns.TypeA, "10.96.0.4"},
		{mail, "db.shop", dns.TypeA, "NXDOMAIN"},
		{stagingDB, "db", dns.TypeA, "10.96.0.7"},
		{stagingDB, "web", dns.TypeA, "forward"},
		{thief, "web.shop", dns.TypeA, "forward"},
		{thief, "tool", dns.TypeA, "forward"},
		{thief, "db.shop.prod.gantry", dns.TypeA, "NXDOMAIN"},
		{tool, "db", dns.TypeA, "10.96.0.1"},
		{tool, "proxy", dns.TypeA, "forward"},
		{vault, "vault", dns.TypeA, "10.96.0.9"},
		{vault, "secret.example.org", dns.TypeA, "NXDOMAIN"},
		{vault, "secret.example.org", dns.TypeTXT, "NXDOMAIN"},
		{vault, "9.9.9.9.in-addr.arpa", dns.TypePTR, "NXDOMAIN"},
		{loner, "loner", dns.TypeA, "10.96.0.10"},
		{loner, "db", dns.TypeA, "NXDOMAIN"},
		{loner, "example.org", dns.TypeA, "forward"},
		{stranger, "db", dns.TypeA, "forward"},
		{stranger, "db.shop.prod.gantry", dns.TypeA, "NXDOMAIN"},
		{web, "1.0.96.10.in-addr.arpa", dns.TypePTR, "db.shop.prod.gantry."},
		{web, "3.0.64.10.in-addr.arpa", dns.TypePTR, "2.db.shop.prod.gantry."},
		{web, "12.0.64.10.in-addr.arpa", dns.TypePTR, "tool.prod.gantry."},
		{web, "10.0.64.10.in-addr.arpa", dns.TypePTR, "NXDOMAIN"}, // staging's
		{stranger, "1.0.96.10.in-addr.arpa", dns.TypePTR, "NXDOMAIN"},
		{web, "9.9.9.9.in-addr.arpa", dns.TypePTR, "forward"},
		{web, "3.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa", dns.TypePTR, "2.db.shop.prod.gantry."},
	} {
		if got := askAs(t, s, c.asker, c.name, c.kind); got != c.want {
			t.Errorf("%s asks %s %s: %q, want %q", c.asker, c.name, dns.TypeToString[c.kind], got, c.want)
		}
	}
}

func TestApplyChangesAnswersAndKeepsUnchangedApps(t *testing.T) {
	s, _ := New(Options{})
	st := state()
	s.Apply(st)
	mail := s.known.Load().apps[appKey{"prod", "mail"}]
	st.Endpoints[0] = svc("prod/shop/db 10.96.0.1 nets=prod/shop/back 10.64.0.2 !10.64.0.3")
	s.Apply(st)
	if got := askAs(t, s, "10.64.0.5", "tasks.db", dns.TypeA); got != "10.64.0.2" {
		t.Errorf("after an instance became unready: %q", got)
	}
	if got := askAs(t, s, "10.64.0.4", "db", dns.TypeA); got != "forward" {
		t.Errorf("a removed instance still sees names: %q", got)
	}
	if s.known.Load().apps[appKey{"prod", "mail"}] != mail {
		t.Error("an app that did not change was encoded again")
	}
}

func TestRealQueries(t *testing.T) {
	up := upstream(t, func(q dns.Question) string { return q.Name + " 5 IN A 192.0.2.7" })
	s := start(t, Options{Upstreams: []string{up}})
	st := state()
	st.Endpoints = append(st.Endpoints, svc("prod/shop/me 10.96.0.20 nets=prod/shop/back 127.0.0.1"))
	s.Apply(st)
	for _, c := range []struct{ net, name, want string }{
		{"udp", "db.", "10.96.0.1"}, {"tcp", "db.", "10.96.0.1"},
		{"udp", "example.org.", "192.0.2.7"}, {"tcp", "example.org.", "192.0.2.7"},
	} {
		client := &dns.Client{Net: c.net}
		r, _, err := client.Exchange(new(dns.Msg).SetQuestion(c.name, dns.TypeA), s.address())
		if err != nil {
			t.Fatalf("%s %s: %v", c.net, c.name, err)
		}
		if got := text(r); got != c.want {
			t.Errorf("%s %s: %q, want %q", c.net, c.name, got, c.want)
		}
	}
}

func TestInternalNetworkNeverReachesUpstream(t *testing.T) {
	asked := make(chan string, 10)
	up := upstream(t, func(q dns.Question) string { asked <- q.Name; return q.Name + " 5 IN A 192.0.2.7" })
	s := start(t, Options{Upstreams: []string{up}})
	s.Apply(State{
		Endpoints: []*gantryv1.ServiceEndpoints{svc("prod/shop/me 10.96.0.20 nets=prod/shop/cellar 127.0.0.1")},
		Networks:  []*gantryv1.Network{{Meta: &gantryv1.Meta{Key: "prod/shop/cellar"}, Internal: true}},
	})
	for _, network := range []string{"udp", "tcp"} {
		client := &dns.Client{Net: network}
		r, _, err := client.Exchange(new(dns.Msg).SetQuestion("stolen-data.example.org.", dns.TypeTXT), s.address())
		if err != nil || r.Rcode != dns.RcodeNameError {
			t.Errorf("%s: %v, %v", network, r, err)
		}
	}
	select {
	case name := <-asked:
		t.Fatalf("the question %s left the node", name)
	default:
	}
}

func TestInstancesMayHaveNameServersOfTheirOwn(t *testing.T) {
	hosts := upstream(t, func(q dns.Question) string { return q.Name + " 5 IN A 192.0.2.7" })
	own := upstream(t, func(q dns.Question) string { return q.Name + " 5 IN A 192.0.2.8" })
	s := start(t, Options{Upstreams: []string{hosts}})
	me := svc("prod/shop/me 10.96.0.20 nets=prod/shop/back 127.0.0.1")
	me.Endpoints[0].Instance = "i1"
	st := State{Endpoints: []*gantryv1.ServiceEndpoints{me}}
	ask := func(network string) (*dns.Msg, error) {
		s.Apply(st)
		r, _, err := (&dns.Client{Net: network}).Exchange(new(dns.Msg).SetQuestion("example.org.", dns.TypeA), s.address())
		return r, err
	}
	for _, c := range []struct {
		upstreams []string
		want      string
	}{{nil, "192.0.2.7"}, {[]string{own}, "192.0.2.8"}} {
		st.Upstreams = map[string][]string{"i1": c.upstreams, "i2": {hosts}}
		for _, network := range []string{"udp", "tcp"} {
			if r, err := ask(network); err != nil || text(r) != c.want {
				t.Errorf("%v by %s: %v, %v", c.upstreams, network, r, err)
			}
		}
	}
	// A container that the asker may not talk to must not be asked for it.
	_, port, _ := net.SplitHostPort(own)
	st.Endpoints = append(st.Endpoints, svc("staging/shop/dns 10.96.0.21 nets=staging/shop/back 127.0.0.2"))
	st.Upstreams = map[string][]string{"i1": {"127.0.0.2:" + port}}
	if r, err := ask("udp"); err != nil || r.Rcode != dns.RcodeServerFailure {
		t.Errorf("through a stranger: %v, %v", r, err)
	}
}

func TestDeadUpstreamIsPassedOver(t *testing.T) {
	dead, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	gone := dead.LocalAddr().String()
	dead.Close()
	up := upstream(t, func(q dns.Question) string { return q.Name + " 5 IN A 192.0.2.7" })
	s := start(t, Options{Upstreams: []string{gone, up}})
	r, _, err := new(dns.Client).Exchange(new(dns.Msg).SetQuestion("example.org.", dns.TypeA), s.address())
	if err != nil || text(r) != "192.0.2.7" {
		t.Fatalf("%v, %v", r, err)
	}
	none := start(t, Options{Upstreams: []string{gone}})
	r, _, err = new(dns.Client).Exchange(new(dns.Msg).SetQuestion("example.org.", dns.TypeA), none.address())
	if err != nil || r.Rcode != dns.RcodeServerFailure {
		t.Fatalf("without a name server: %v, %v", r, err)
	}
}

func TestManyMembersAreTruncatedOverUDPAndWholeOverTCP(t *testing.T) {
	s := start(t, Options{Upstreams: []string{}})
	e := svc("prod/shop/me 10.96.0.20 nets=prod/shop/back 127.0.0.1")
	for i := range 100 {
		e.Endpoints = append(e.Endpoints, &gantryv1.Endpoint{Slot: int32(i + 2), Address: fmt.Sprintf("10.64.1.%d", i+1), Ready: true})
	}
	s.Apply(State{Endpoints: []*gantryv1.ServiceEndpoints{e}})
	m := new(dns.Msg).SetQuestion("tasks.me.", dns.TypeA)
	first := map[string]bool{}
	for range 5 {
		r, _, err := new(dns.Client).Exchange(m, s.address())
		if err != nil {
			t.Fatal(err)
		}
		r.Compress = true // as it came
		if !r.Truncated || len(r.Answer) < 25 || r.Len() > 512 {
			t.Fatalf("%d answers in %d bytes, truncated %v", len(r.Answer), r.Len(), r.Truncated)
		}
		first[r.Answer[0].String()] = true
	}
	if len(first) != 5 {
		t.Errorf("5 answers started with %d different members", len(first))
	}
	r, _, err := (&dns.Client{Net: "tcp"}).Exchange(m, s.address())
	if err != nil || len(r.Answer) != 101 {
		t.Fatalf("over TCP: %v, %v", r, err)
	}
	m.SetEdns0(1232, false)
	r, _, err = new(dns.Client).Exchange(m, s.address())
	if err != nil || r.IsEdns0() == nil || len(r.Answer) < 70 {
		t.Fatalf("with EDNS: %d answers, %v", len(r.Answer), err)
	}
}

func TestStrangersAreRefused(t *testing.T) {
	s, _ := New(Options{Clients: []netip.Prefix{netip.MustParsePrefix("10.64.0.0/24")}})
	s.Apply(state())
	if got := askAs(t, s, "192.0.2.1", "example.org", dns.TypeA); got != "REFUSED" {
		t.Errorf("a stranger gets %s", got)
	}
	if got := askAs(t, s, "127.0.0.1", "example.org", dns.TypeA); got != "forward" {
		t.Errorf("the host gets %s", got)
	}
}

func TestResolvConfIsReadAgain(t *testing.T) {
	conf := t.TempDir() + "/resolv.conf"
	write := func(s string) {
		if err := os.WriteFile(conf, []byte(s), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("# c\nnameserver 192.0.2.1\nnameserver 10.64.0.1\nsearch x\n")
	f := newForwarder(Options{ResolvConf: conf, Port: 53, Listen: []netip.Addr{netip.MustParseAddr("10.64.0.1")}})
	if got := f.upstreams(); !slices.Equal(got, []string{"192.0.2.1:53"}) {
		t.Errorf("%v", got)
	}
	write("nameserver 2001:db8::1\n")
	f.read = f.read.Add(-time.Minute)
	if got := f.upstreams(); !slices.Equal(got, []string{"[2001:db8::1]:53"}) {
		t.Errorf("after a change: %v", got)
	}
}

// upstream is a name server that gives each question one record.
// bothPorts binds a port that is free for UDP and TCP.
func bothPorts(t testing.TB) (pc net.PacketConn, l net.Listener) {
	t.Helper()
	var err error
	for range 20 {
		if pc, err = net.ListenPacket("udp", "127.0.0.1:0"); err != nil {
			t.Fatal(err)
		}
		if l, err = net.Listen("tcp", pc.LocalAddr().String()); err == nil {
			return pc, l
		}
		pc.Close()
	}
	t.Fatal(err)
	return nil, nil
}

func upstream(t testing.TB, record func(dns.Question) string) string {
	t.Helper()
	pc, l := bothPorts(t)
	h := dns.HandlerFunc(func(w dns.ResponseWriter, m *dns.Msg) {
		r := new(dns.Msg).SetReply(m)
		rr, err := dns.NewRR(record(m.Question[0]))
		if err == nil {
			r.Answer = append(r.Answer, rr)
		}
		_ = w.WriteMsg(r)
	})
	udp, tcp := &dns.Server{PacketConn: pc, Handler: h}, &dns.Server{Listener: l, Handler: h}
	var g errgroup.Group
	ready := make(chan bool, 2)
	for _, s := range []*dns.Server{udp, tcp} {
		s.NotifyStartedFunc = func() { ready <- true }
		g.Go(s.ActivateAndServe)
	}
	<-ready
	<-ready
	t.Cleanup(func() { _ = udp.Shutdown(); _ = tcp.Shutdown(); _ = g.Wait() })
	return pc.LocalAddr().String()
}

func FuzzAnswer(f *testing.F) {
	s, _ := New(Options{})
	s.Apply(state())
	for _, name := range []string{"db.", "tasks.db.", "1.0.96.10.in-addr.arpa.", "x.gantry."} {
		m, _ := new(dns.Msg).SetQuestion(name, dns.TypeA).SetEdns0(1232, true).Pack()
		f.Add(m)
	}
	f.Fuzz(func(t *testing.T, m []byte) {
		reply, forward := s.answer(m, netip.MustParseAddr("10.64.0.5"), true, nil)
		if forward || reply == nil {
			return
		}
		if len(reply) > 1500 {
			t.Fatalf("%d bytes for %d", len(reply), len(m))
		}
		if err := new(dns.Msg).Unpack(reply); err != nil && new(dns.Msg).Unpack(m) == nil {
			t.Fatalf("an unreadable reply %x to %x: %v", reply, m, err)
		}
	})
}

func BenchmarkAnswer(b *testing.B) {
	s, _ := New(Options{})
	var st State
	for i := range 10000 {
		st.Endpoints = append(st.Endpoints, svc(fmt.Sprintf("prod/app%d/s%d 10.96.%d.%d nets=prod/shared 10.64.%d.%d", i/10, i, i/250, i%250+1, i/250, i%250+1)))
	}
	s.Apply(st)
	m, _ := new(dns.Msg).SetQuestion("s5003.", dns.TypeA).Pack()
	asker, out := netip.MustParseAddr("10.64.20.3"), make([]byte, 0, 512)
	b.ReportAllocs()
	for b.Loop() {
		if r, _ := s.answer(m, asker, true, out); len(r) < 30 {
			b.Fatal("no answer")
		}
	}
}

func BenchmarkQuery(b *testing.B) {
	s := start(b, Options{Upstreams: []string{}})
	s.Apply(State{Endpoints: []*gantryv1.ServiceEndpoints{svc("prod/shop/me 10.96.0.20 nets=prod/shop/back 127.0.0.1")}})
	m, _ := new(dns.Msg).SetQuestion("me.", dns.TypeA).Pack()
	c, err := net.Dial("udp", s.address())
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	buf := make([]byte, 512)
	for b.Loop() {
		if _, err := c.Write(m); err != nil {
			b.Fatal(err)
		}
		if _, err := c.Read(buf); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkApplyOneOf1000(b *testing.B) {
	s, _ := New(Options{})
	var st State
	for i := range 1000 {
		st.Endpoints = append(st.Endpoints, svc(fmt.Sprintf("prod/app%d/s%d 10.96.%d.%d nets=prod/app%d/net 10.64.%d.%d", i/5, i, i/250, i%250+1, i/5, i/250, i%250+1)))
	}
	for i := 0; b.Loop(); i++ {
		e := svc("prod/app3/s17 10.96.9.9 nets=prod/app3/net 10.64.9.9")
		e.Endpoints[0].Ready = i%2 == 0
		st.Endpoints[17] = e
		s.Apply(st)
	}
}

// TestChangesAddUp walks through random states; what is known must be what a new server would know.
func TestChangesAddUp(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 7))
	s, err := New(Options{})
	if err != nil {
		t.Fatal(err)
	}
	st := State{Endpoints: make([]*gantryv1.ServiceEndpoints, 12)}
	compared := 0
	for step := range 2000 {
		for range 1 + rng.IntN(3) {
			i := rng.IntN(len(st.Endpoints))
			line := fmt.Sprintf("prod/app%d/s%d 10.96.0.%d nets=prod/n%d,prod/n%d", i/3, i, i, rng.IntN(4), rng.IntN(4))
			for range rng.IntN(3) {
				line += fmt.Sprintf(" 10.64.0.%d", rng.IntN(250))
			}
			st.Endpoints[i] = svc(line)
			if rng.IntN(5) == 0 {
				st.Endpoints[i] = nil
			}
		}
		now := State{Endpoints: slices.DeleteFunc(slices.Clone(st.Endpoints), func(e *gantryv1.ServiceEndpoints) bool { return e == nil })}
		s.Apply(now)
		anew, err := New(Options{})
		if err != nil {
			t.Fatal(err)
		}
		anew.Apply(now)
		got, want := s.known.Load(), anew.known.Load()
		if !want.mixed {
			compared++
			if a, b := got.text(), want.text(); a != b {
				t.Fatalf("step %d:\n%s\nanew\n%s", step, a, b)
			}
		}
		if len(got.members) != len(want.members) {
			t.Fatalf("step %d: %d members, anew %d", step, len(got.members), len(want.members))
		}
	}
	if compared < 500 {
		t.Errorf("only %d of 2000 states could be compared", compared)
	}
}

// text is what a snapshot says, in a fixed order.
func (n *snapshot) text() string {
	var lines []string
	for a, m := range n.members {
		lines = append(lines, fmt.Sprintf("%s is %s of %s", a, m.host, m.service.app.name))
	}
	for k, a := range n.apps {
		lines = append(lines, fmt.Sprintf("app %s with %d services, %d names", k.name, len(a.services), len(a.names)))
	}
	for network, apps := range n.networks {
		for _, a := range apps {
			lines = append(lines, "in "+network+" app "+a.name)
		}
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

func BenchmarkApplyOneOf100000Instances(b *testing.B) {
	s, _ := New(Options{})
	var st State
	for i := range 5000 {
		line := fmt.Sprintf("prod/app%d/s%d 10.96.%d.%d nets=prod/app%d/net", i/5, i, i/250, i%250+1, i/5)
		for j := range 20 {
			line += fmt.Sprintf(" 10.%d.%d.%d", 64+i/1000, i%1000/4, i%4*50+j)
		}
		e := svc(line)
		e.Endpoints[1].Address6 = "" // svc gives many the same
		st.Endpoints = append(st.Endpoints, e)
	}
	s.Apply(st)
	for i := 0; b.Loop(); i++ {
		e := svc("prod/app3/s17 10.96.0.18 nets=prod/app3/net 10.90.9.9")
		e.Endpoints[0].Ready = i%2 == 0
		st.Endpoints[17] = e
		s.Apply(st)
	}
}
