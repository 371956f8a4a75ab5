package discovery

import (
	"net"
	"net/netip"
	"testing"

	"github.com/miekg/dns"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/internal/tally"
)

// Every question is counted once, by what became of it, and timed by who answered it.
func TestQuestionsAreCountedByTheirOutcome(t *testing.T) {
	dead, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	gone := dead.LocalAddr().String()
	dead.Close()
	up := upstream(t, func(q dns.Question) string { return q.Name + " 5 IN A 192.0.2.7" })
	s := start(t, Options{Upstreams: []string{up}})
	me := svc("prod/shop/me 10.96.0.20 nets=prod/shop/back 127.0.0.1")
	me.Endpoints[0].Instance = "i1"
	st := State{Endpoints: []*gantryv1.ServiceEndpoints{me}}
	f := s.Figures()
	ask := func(network, name string, class uint16) {
		t.Helper()
		m := new(dns.Msg).SetQuestion(name, dns.TypeA)
		m.Question[0].Qclass = class
		if _, _, err := (&dns.Client{Net: network}).Exchange(m, s.address()); err != nil {
			t.Fatalf("%s %s: %v", network, name, err)
		}
	}
	want := map[*tally.Counter]int64{}
	for _, c := range []struct {
		what, name string
		upstreams  []string
		class      uint16
		count      *tally.Counter
		latency    *tally.Latency
	}{
		{"a name of ours", "me.", nil, dns.ClassINET, &f.Answered, &f.Answers},
		{"a name of nobody", "nobody.gantry.", nil, dns.ClassINET, &f.NotFound, &f.Answers},
		{"what is no question for us", "me.", nil, dns.ClassCHAOS, &f.Refused, &f.Answers},
		{"a name of others", "example.org.", nil, dns.ClassINET, &f.Forwarded, &f.Forwards},
		{"a name server that is gone", "example.org.", []string{gone}, dns.ClassINET, &f.Failed, &f.Forwards},
	} {
		st.Upstreams = map[string][]string{"i1": c.upstreams}
		s.Apply(st)
		for _, network := range []string{"udp", "tcp"} {
			before, _, _ := c.latency.Read()
			ask(network, c.name, c.class)
			want[c.count]++
			if after, _, _ := c.latency.Read(); after != before+1 {
				t.Errorf("%s by %s: %d times taken, want 1", c.what, network, after-before)
			}
			for _, counter := range []*tally.Counter{&f.Answered, &f.NotFound, &f.Refused, &f.Forwarded, &f.Failed} {
				if counter.Value() != want[counter] {
					t.Errorf("%s by %s: answered %d, not found %d, refused %d, forwarded %d, failed %d", c.what, network,
						f.Answered.Value(), f.NotFound.Value(), f.Refused.Value(), f.Forwarded.Value(), f.Failed.Value())
					break
				}
			}
		}
	}
	if f.Waiting.Value() != 0 {
		t.Errorf("%d questions are under way after all were answered", f.Waiting.Value())
	}
	// What gets no reply at all is counted too.
	if reply, forward := s.reply([]byte("nonsense"), netip.MustParseAddr("127.0.0.1"), true, nil); reply != nil || forward {
		t.Error("a message without sense was answered")
	}
	if f.Refused.Value() != want[&f.Refused]+1 {
		t.Error("a message without sense is not counted")
	}
}
