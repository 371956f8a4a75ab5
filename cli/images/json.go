package images

import (
	"bytes"
	"encoding/json"
	"fmt"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/cli/outline"
	"github.com/gantryd/gantry/cli/verb"
	"github.com/gantryd/gantry/fault"
)

// putImages prints images with their OCI documents as JSON inside, not as the bytes that the API carries.
func (s verbs) putImages(found []*gantryv1.InspectImageResponse) error {
	all := []any{}
	for _, image := range found {
		v, err := verb.Decoded(image)
		if err != nil {
			return err
		}
		for name, document := range map[string][]byte{"config": image.GetConfig(), "manifest": image.GetManifest()} {
			dec := json.NewDecoder(bytes.NewReader(document))
			dec.UseNumber()
			var inner any
			if dec.Decode(&inner) == nil {
				v[name] = inner
			}
		}
		all = append(all, v)
	}
	if s.Output != "json" {
		for _, v := range all {
			outline.Write(s.Out, v.(map[string]any), "")
		}
		return nil
	}
	text, err := verb.JSONText(all)
	if err != nil {
		return fault.Wrap(fault.Internal, err, "the answer has no JSON form")
	}
	_, err = fmt.Fprintln(s.Out, text)
	return err
}
