package server

import (
	"strings"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/fault"
)

// nameIn is what a key is called within its environment.
func nameIn(key string) string {
	_, name, _ := strings.Cut(key, "/")
	return name
}

// keyOf checks a key that a client sent: it names something of the environment the request is for, and nothing else.
func keyOf(what, environment, key string) error {
	env, name, ok := strings.Cut(key, "/")
	if !ok || env != environment {
		return fault.New(fault.Invalid, "the key %q of a %s does not belong to the environment %q", key, what, environment).
			WithHint("a key begins with %s/", environment)
	}
	return validKey(what, name)
}

func appKeysValid(environment string, spec *gantryv1.AppSpec) error {
	for _, name := range sorted(spec.Networks) {
		if err := keyOf("network", environment, spec.Networks[name].GetKey()); err != nil {
			return err
		}
	}
	for _, name := range sorted(spec.Volumes) {
		if err := keyOf("volume", environment, spec.Volumes[name].GetKey()); err != nil {
			return err
		}
	}
	if err := fileKeysValid("secret", environment, spec.Secrets); err != nil {
		return err
	}
	if err := fileKeysValid("config", environment, spec.Configs); err != nil {
		return err
	}
	for _, name := range sorted(spec.Services) {
		if err := containerKeysValid(environment, spec.Services[name].Container); err != nil {
			return err
		}
	}
	return nil
}

func fileKeysValid(kind, environment string, files map[string]*gantryv1.FileSpec) error {
	for _, name := range sorted(files) {
		if err := keyOf(kind, environment, files[name].GetKey()); err != nil {
			return err
		}
	}
	return nil
}

// containerKeysValid checks all that a container refers to.
func containerKeysValid(environment string, c *gantryv1.ContainerSpec) error {
	for what, keys := range map[string][]string{
		"volume": volumeKeys(c), "secret": secretKeys(c), "config": configKeys(c), "network": networkKeys(c),
	} {
		for _, key := range keys {
			if err := keyOf(what, environment, key); err != nil {
				return err
			}
		}
	}
	return nil
}

func networkKeys(c *gantryv1.ContainerSpec) []string {
	var out []string
	for _, at := range c.GetNetwork().GetAttachments() {
		out = append(out, at.Network)
	}
	return out
}
