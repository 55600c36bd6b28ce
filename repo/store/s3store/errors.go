package s3store

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"strings"
	"syscall"
	"unicode"

	"github.com/minio/minio-go/v7"

	"github.com/patchkeep/patchkeep/repo/store"
)

var errStalled = errors.New("no answer in time")

// codeRequestConflict: a concurrent write to the same key made S3 give up.
const codeRequestConflict = "ConditionalRequestConflict"

// tryError is the error of one request, as minio-go returned it.
type tryError struct{ error }

func (e *tryError) Unwrap() error { return e.error }

// fault is an error as this package returns it. Its text is for people, short,
// and free of secrets whatever the service says.
type fault struct {
	is   error  // a sentinel of package store or fs; nil if there is none
	code string // S3's error code, if the service has answered
	text string
}

func (f *fault) Error() string { return f.text }
func (f *fault) Unwrap() error { return f.is }

func isCode(err error, code string) bool {
	f, ok := errors.AsType[*fault](err)
	return ok && f.code == code
}

// verdict is whether a request may be tried again, and whether what it was to
// write may have been written all the same.
type verdict struct{ again, unsure bool }

// judge decides on the error of a request whose own context has not ended.
func judge(err error) verdict {
	if err == nil {
		return verdict{}
	}
	if resp, ok := errors.AsType[minio.ErrorResponse](err); ok {
		switch {
		case resp.Code == codeRequestConflict || resp.Code == "OperationAborted":
			return verdict{again: true}
		case serviceDown(resp):
			return verdict{again: true, unsure: true}
		}
		return verdict{}
	}
	if !isNetwork(err) || isTrust(err) {
		return verdict{}
	}
	op, ok := errors.AsType[*net.OpError](err)
	return verdict{again: true, unsure: !ok || op.Op != "dial"}
}

// serviceDown tells a failure of the service itself from a refusal.
func serviceDown(resp minio.ErrorResponse) bool {
	if resp.StatusCode == 0 { // minio-go's own, about an answer it does not understand
		return false
	}
	switch resp.Code {
	case "SlowDown", "SlowDownRead", "SlowDownWrite", "InternalError", "ServiceUnavailable", "RequestTimeout", "Throttling", "ThrottlingException", "RequestLimitExceeded":
		return true
	}
	switch resp.StatusCode {
	case http.StatusRequestTimeout, http.StatusTooManyRequests,
		http.StatusInternalServerError, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return true
	}
	return false
}

func isNetwork(err error) bool {
	_, isURL := errors.AsType[*url.Error](err)
	_, isNet := errors.AsType[net.Error](err)
	return isURL || isNet || errors.Is(err, errStalled) || errors.Is(err, context.Canceled) ||
		errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET)
}

// isTrust tells errors of TLS: a matter of settings, or of an attack, which
// another try does not help.
func isTrust(err error) bool {
	_, cert := errors.AsType[*tls.CertificateVerificationError](err)
	_, record := errors.AsType[tls.RecordHeaderError](err)
	_, auth := errors.AsType[x509.UnknownAuthorityError](err)
	return cert || record || auth || isPlainServer(err)
}

// isPlainServer recognizes an error that net/http has no type for.
func isPlainServer(err error) bool {
	return strings.Contains(err.Error(), "server gave HTTP response to HTTPS client")
}

// explain turns the error of a request whose caller still waits into one for
// people.
func (s *Store) explain(err error) error {
	if resp, ok := errors.AsType[minio.ErrorResponse](err); ok {
		return s.explainResponse(resp)
	}
	if _, ok := errors.AsType[*credentialError](err); ok {
		return &fault{is: store.ErrDenied, text: fmt.Sprintf("%s: %s", store.ErrDenied, err)}
	}
	host := s.client.EndpointURL().Host
	switch {
	case isPlainServer(err):
		return &fault{text: host + " does not speak TLS (insecure=true in the store's URL allows plain HTTP, for tests)"}
	case isTrust(err):
		return &fault{text: fmt.Sprintf("%s is not trusted: %s (AWS_CA_BUNDLE names a file of further authorities)", host, s.clean(innermost(err)))}
	case isNetwork(err):
		return &fault{is: store.ErrUnreachable, text: fmt.Sprintf("%s: %s: %s", store.ErrUnreachable, host, s.clean(innermost(err)))}
	}
	return &fault{text: fmt.Sprintf("%s does not answer as S3 does: %s", host, s.clean(err.Error()))}
}

// innermost is the text of a network error without the URL and the wrappers.
func innermost(err error) string {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, errStalled) {
		return errStalled.Error()
	}
	if u, ok := errors.AsType[*url.Error](err); ok {
		err = u.Err
	}
	if strings.HasPrefix(err.Error(), "Connection closed by foreign host") { // minio-go's word for EOF
		return "the connection was closed"
	}
	return err.Error()
}

func (s *Store) explainResponse(resp minio.ErrorResponse) error {
	f := &fault{code: resp.Code}
	code := s.clean(resp.Code)
	switch resp.Code {
	case minio.PreconditionFailed, codeRequestConflict, "OperationAborted":
		f.is, f.text = store.ErrConflict, store.ErrConflict.Error()
		return f
	case minio.NoSuchKey, "NotFound":
		f.is, f.text = fs.ErrNotExist, "object does not exist"
		return f
	case minio.NoSuchBucket:
		f.text = fmt.Sprintf("bucket %q does not exist", s.cfg.Bucket)
		return f
	case minio.NotImplemented:
		f.is, f.text = store.ErrUnsupported, fmt.Sprintf("%s: %s", store.ErrUnsupported, code)
		return f
	case "InvalidAccessKeyId", "XAdminUserNotFound": // the latter is VersityGW's
		return s.denied(f, "the access key is not known")
	case "SignatureDoesNotMatch":
		return s.denied(f, "the secret key does not fit the access key")
	case "ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "RequestExpired":
		return s.denied(f, "the credentials have expired")
	case "RequestTimeTooSkewed":
		return s.denied(f, "this machine's clock differs too much from the service's")
	case "AuthorizationHeaderMalformed", "InvalidRegion":
		return s.denied(f, "perhaps the region is wrong: "+s.clean(resp.Message))
	}
	switch {
	case serviceDown(resp):
		f.is, f.text = store.ErrUnreachable, fmt.Sprintf("%s: %s answers %s", store.ErrUnreachable, s.client.EndpointURL().Host, code)
	case resp.StatusCode == http.StatusPreconditionFailed:
		f.is, f.text = store.ErrConflict, store.ErrConflict.Error()
	case resp.StatusCode == http.StatusUnauthorized || resp.StatusCode == http.StatusForbidden || resp.Code == minio.AccessDenied:
		return s.denied(f, code)
	case resp.StatusCode == 0:
		f.text = fmt.Sprintf("%s does not answer as S3 does: %s", s.client.EndpointURL().Host, s.clean(resp.Message))
	default:
		f.text = fmt.Sprintf("%s refuses: %s: %s", s.client.EndpointURL().Host, code, s.clean(resp.Message))
	}
	return f
}

func (s *Store) denied(f *fault, why string) error {
	f.is = store.ErrDenied
	f.text = fmt.Sprintf("%s: %s", store.ErrDenied, why)
	if s.creds.anonymous() {
		f.text += " (no AWS credentials were found in the environment or in files)"
	}
	return f
}

// clean makes a text that came from outside fit for a line of an error: at most
// 200 bytes, nothing unprintable, and no secret even if the service echoes one.
func (s *Store) clean(text string) string {
	for _, secret := range s.creds.secrets() {
		text = strings.ReplaceAll(text, secret, "…")
	}
	text = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, text)
	if len(text) > 200 {
		text = strings.ToValidUTF8(text[:200], "") + "…"
	}
	return text
}
