// SPDX-FileCopyrightText: The coffer authors
// SPDX-License-Identifier: Apache-2.0

package kbs

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"net/http"
	"time"

	"github.com/coffer-cc/coffer/kbs/rcar"
	"github.com/containerd/errdefs"
)

const (
	opAttest     = "attest"
	contentJSON  = "application/json"
	maxChallenge = 64 << 10
	maxResponse  = 1 << 20
	requestExtra = `{"supported-hash-algorithms":["sha256","sha384","sha512"]}`
)

// handshake makes one pass of Request, Challenge, Attestation, Response with a
// new key. A pass is repeated as a whole, since a nonce is good for one
// Attestation.
func (c *Client) handshake(ctx context.Context) (*session, error) {
	began := time.Now()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make the TEE's key: %w", err)
	}
	pub, err := rcar.NewPublicKey(&key.PublicKey)
	if err != nil {
		return nil, err
	}
	jar := cookies{}
	challenge, err := c.request(ctx, jar)
	if err != nil {
		return nil, err
	}
	runtime := rcar.RuntimeData{Nonce: challenge.Nonce, TEEPubKey: pub}
	evidence, err := c.evidence(ctx, challenge, runtime)
	if err != nil {
		return nil, err
	}
	token, err := c.attest(ctx, jar, rcar.Attestation{InitData: c.initData, RuntimeData: runtime, Evidence: evidence})
	if err != nil {
		return nil, err
	}
	now := time.Now()
	return &session{token: token, key: key, cookies: jar, made: began, expires: now.Add(lifetime(token, now))}, nil
}

func (c *Client) request(ctx context.Context, jar cookies) (rcar.Challenge, error) {
	body, err := json.Marshal(rcar.Request{
		Version:     rcar.Version,
		TEE:         c.source.TEE(),
		ExtraParams: json.RawMessage(requestExtra),
	})
	if err != nil {
		return rcar.Challenge{}, err
	}
	a, err := c.do(ctx, request{
		op: opAttest, method: http.MethodPost, path: apiPrefix + "auth",
		contentType: contentJSON, body: body, limit: maxChallenge,
	})
	if err != nil {
		return rcar.Challenge{}, err
	}
	jar.merge(a.cookies)
	challenge, err := rcar.ParseChallenge(a.body)
	if err != nil {
		return rcar.Challenge{}, c.strange(opAttest, err.Error())
	}
	return challenge, nil
}

func (c *Client) evidence(ctx context.Context, challenge rcar.Challenge, runtime rcar.RuntimeData) (rcar.Evidence, error) {
	hash, err := challenge.HashAlgorithm()
	if err != nil {
		return rcar.Evidence{}, c.strange(opAttest, err.Error())
	}
	reportData, err := rcar.ReportData(hash, runtime, "")
	if err != nil {
		return rcar.Evidence{}, c.strange(opAttest, err.Error())
	}
	tee := c.source.TEE()
	primary, err := c.source.Evidence(ctx, reportData)
	if err != nil {
		if ctx.Err() != nil {
			return rcar.Evidence{}, c.unreachable(ctx, opAttest, err)
		}
		return rcar.Evidence{}, fmt.Errorf("attest to kbs %s: get evidence of tee %s: %w", c.base, tee, err)
	}
	if !json.Valid(primary) {
		return rcar.Evidence{}, fmt.Errorf("attest to kbs %s: evidence of tee %s is not JSON: %w", c.base, tee, errdefs.ErrInternal)
	}
	return rcar.Evidence{Primary: primary}, nil
}

func (c *Client) attest(ctx context.Context, jar cookies, attestation rcar.Attestation) (string, error) {
	body, err := json.Marshal(attestation)
	if err != nil {
		return "", fmt.Errorf("attest to kbs %s: encode: %w", c.base, errdefs.ErrInternal)
	}
	a, err := c.do(ctx, request{
		op: opAttest, method: http.MethodPost, path: apiPrefix + "attest",
		contentType: contentJSON, body: body, cookies: jar, limit: maxResponse,
	})
	if err != nil {
		return "", err
	}
	jar.merge(a.cookies)
	response, err := rcar.ParseResponse(a.body)
	if err != nil {
		return "", c.strange(opAttest, err.Error())
	}
	return response.Token, nil
}
