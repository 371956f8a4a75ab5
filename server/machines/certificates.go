package machines

import (
	"fmt"
	"time"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
)

// certificateWarning is the least part that should be left of a certificate's life: machines renew after two thirds.
const certificateWarning = 5

// examineCertificate looks at how long a node's certificate is good. What counts is the life that it was made for: the cluster's
// may have been changed since. Nil if all is well.
func examineCertificate(n *gantryv1.Node, st *gantryv1.NodeStatus, h Health) *gantryv1.Finding {
	if st.GetCertificateEnd() == nil {
		return nil
	}
	end, life := st.GetCertificateEnd().AsTime(), h.Life
	if d := st.GetCertificateLife().AsDuration(); d > 0 {
		life = d
	}
	left := end.Sub(h.Now)
	f := &gantryv1.Finding{Severity: "warning", Subject: n.Name}
	switch {
	case left <= 0 && st.State != "ready":
		f.Severity = "error"
		f.Message = fmt.Sprintf("the certificate of node %s ended at %s while it was away: it cannot come back by itself", n.Name, end.Format(time.RFC3339))
		f.Hint = "gantry node rm --force " + n.Name + "; there: systemctl disable --now gantryd, reboot, keep what you need of ROOT/volumes, empty --root, and run gantry join"
	case left < life/certificateWarning:
		f.Message = fmt.Sprintf("the certificate of node %s ends at %s", n.Name, end.Format(time.RFC3339))
		f.Hint = "it renews itself while it reaches a server; see the log of its gantryd"
	default:
		return nil
	}
	return f
}
