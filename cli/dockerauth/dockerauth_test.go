package dockerauth_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/gantryd/gantry/cli/dockerauth"
	"github.com/gantryd/gantry/fault"
)

const config = `{
  "auths": {
    "https://index.docker.io/v1/": {"auth": "aHVi` + `OnNlY3JldDp3aXRoOmNvbG9u"},
    "reg.example:5000": {"auth": "dTpw"},
    "token.example": {"auth": "dTpw", "identitytoken": "it"},
    "broken.example": {"auth": "!!"},
    "empty.example": {}
  },
  "credHelpers": {"helped.example": "fake", "sick.example": "sick", "unknown.example": "none"}
}`

func load(t *testing.T, content string) (*dockerauth.Keychain, error) {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("DOCKER_CONFIG", dir)
	return dockerauth.Load()
}

func helper(t *testing.T, dir, name, script string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, "docker-credential-"+name), []byte("#!/bin/sh\n"+script), 0o755); err != nil {
		t.Fatal(err)
	}
}

func TestCredentials(t *testing.T) {
	bin := t.TempDir()
	helper(t, bin, "fake", `read s; printf '{"Username":"<token>","Secret":"for %s"}' "$s"`)
	helper(t, bin, "sick", `echo out of order >&2; exit 1`)
	helper(t, bin, "none", `echo credentials not found in native keychain; exit 1`)
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	k, err := load(t, config)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ image, user, password, token string }{
		{"debian", "hub", "secret:with:colon", ""},
		{"docker.io/library/debian:12", "hub", "secret:with:colon", ""},
		{"reg.example:5000/a/b@sha256:00", "u", "p", ""},
		{"token.example/x", "u", "p", "it"},
		{"helped.example/x", "", "", "for helped.example"},
	} {
		auth, err := k.For(t.Context(), c.image)
		if err != nil || auth.GetUsername() != c.user || auth.GetPassword() != c.password || auth.GetIdentityToken() != c.token {
			t.Errorf("%s: %v, %v", c.image, auth, err)
		}
	}
	for _, image := range []string{"empty.example/x", "unknown.example/x", "other.example/x", "localhost/x"} {
		if auth, err := k.For(t.Context(), image); auth != nil || err != nil {
			t.Errorf("%s: %v, %v", image, auth, err)
		}
	}
	for _, image := range []string{"broken.example/x", "sick.example/x"} {
		if _, err := k.For(t.Context(), image); err == nil || fault.HintOf(err) == "" {
			t.Errorf("%s: %v", image, err)
		}
	}
}

func TestOneBrokenRegistryDoesNotHideTheOthers(t *testing.T) {
	k, err := load(t, `{"auths": {"a.example": {"auth": "dTpw"}, "b.example": {"auth": "!!"}}}`)
	if err != nil {
		t.Fatal(err)
	}
	if all, problems := k.All(t.Context()); len(all) != 1 || all[0].GetServer() != "a.example" || len(problems) != 1 {
		t.Errorf("got %v, %v", all, problems)
	}
}

func TestConfigFiles(t *testing.T) {
	if _, err := load(t, "{"); !fault.Is(err, fault.Invalid) {
		t.Errorf("half a file: %v", err)
	}
	t.Setenv("DOCKER_CONFIG", t.TempDir())
	k, err := dockerauth.Load()
	if err != nil {
		t.Fatal(err)
	}
	if all, problems := k.All(t.Context()); problems != nil || len(all) != 0 {
		t.Errorf("no file: %v, %v", all, problems)
	}
}
