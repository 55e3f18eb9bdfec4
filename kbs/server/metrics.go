// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"github.com/prometheus/client_golang/prometheus"
)

// Outcomes, as metrics and audit lines name them.
const (
	succeeded       = "ok"
	refused         = "refused"
	failed          = "error"
	released        = "released"
	denied          = "denied"
	notFound        = "not_found"
	unauthenticated = "unauthenticated"
)

// metrics counts what happened. Labels have few values: never a resource, a
// session or a name that a caller chose.
type metrics struct {
	attestations *prometheus.CounterVec
	resources    *prometheus.CounterVec
}

func newMetrics(r *prometheus.Registry) *metrics {
	m := &metrics{
		attestations: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "coffer_kbs_attestations_total", Help: "Attestations by TEE and result (ok, refused, error).",
		}, []string{"tee", "result"}),
		resources: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "coffer_kbs_resources_total",
			Help: "Requests for a resource by result (released, denied, not_found, unauthenticated, refused, error).",
		}, []string{"result"}),
	}
	r.MustRegister(m.attestations, m.resources)
	return m
}

func (m *metrics) attestation(tee, result string) { m.attestations.WithLabelValues(tee, result).Inc() }

func (m *metrics) resource(result string) { m.resources.WithLabelValues(result).Inc() }

// teeLabel keeps made-up names out of the metrics.
func (s *Server) teeLabel(tee string) string {
	for _, name := range append(s.parts.Appraiser.Names(), "sample") {
		if tee == name {
			return name
		}
	}
	return "other"
}
