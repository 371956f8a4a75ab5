package image

import (
	"net/url"
	"testing"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
)

func TestWhereAPasswordMayGo(t *testing.T) {
	for _, c := range []struct {
		registry, to string
		plain, want  bool
	}{
		{"docker.io", "https://registry-1.docker.io/v2/", false, true},
		{"docker.io", "https://auth.docker.io/token", false, true},
		{"docker.io", "https://auth.docker.io.evil.example/token", false, false},
		{"docker.io", "http://auth.docker.io/token", false, false},
		{"registry.corp.example", "https://login.corp.example/token", false, true},
		{"registry.corp.example", "https://corp.example.evil.test/token", false, false},
		{"registry.corp.example", "http://registry.corp.example/v2/", false, false},
		{"registry.corp.example", "http://registry.corp.example/v2/", true, true},
		{"registry.corp.example", "http://login.corp.example/token", true, false},
		{"one.appspot.com", "https://two.appspot.com/token", false, false}, // a suffix under which anybody may have a name
		{"10.0.0.1:5000", "https://10.0.0.2:5000/token", false, false},
		{"10.0.0.1:5000", "https://10.0.0.1:5001/token", false, true},
		{"localhost:5000", "http://localhost:5001/token", false, true},
		{"registry.corp.example", "http://169.254.169.254/latest", true, false},
		{"registry.corp.example", "https://login.partner.example/token", false, false},
		{"registry.named.example", "https://login.partner.example/token", false, true},
	} {
		var extra []string
		if c.registry == "registry.named.example" {
			extra = []string{"login.partner.example"}
		}
		cred := newCredential(c.registry, &gantryv1.RegistryAuth{Username: "ann", Password: "x"}, extra)
		cred.plain.Store(c.plain)
		u, err := url.Parse(c.to)
		if err != nil {
			t.Fatal(err)
		}
		if got := cred.permits(u); got != c.want {
			t.Errorf("password of %s to %s: %v", c.registry, c.to, got)
		}
	}
}
