package s3store

import (
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/minio/minio-go/v7/pkg/credentials"
)

// credentialChain looks for credentials where the AWS tools do, in their order:
//
//  1. AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN;
//  2. the profile AWS_PROFILE in the files AWS_SHARED_CREDENTIALS_FILE and
//     AWS_CONFIG_FILE;
//  3. AWS_WEB_IDENTITY_TOKEN_FILE with AWS_ROLE_ARN, or AWS_CONTAINER_CREDENTIALS_*;
//  4. the role of the EC2 instance, only for Amazon's own endpoints, and not
//     if AWS_EC2_METADATA_DISABLED is "true".
//
// With none of them requests are anonymous, which suffices to read a public
// bucket. It differs from minio-go's Chain in that nothing on the network is
// asked unless it may well answer, and in that failures of what was asked for
// by name are not passed over.
type credentialChain struct {
	amazon bool // the endpoint is Amazon's

	mu      sync.Mutex
	current credentials.Provider // guarded by mu; nil: none, or not yet
	value   credentials.Value    // guarded by mu
}

var _ credentials.Provider = (*credentialChain)(nil)

// credentialError says what is missing. The provider's own error might quote
// a line of a file of secrets, so it is not wrapped.
type credentialError struct{ source string }

func (e *credentialError) Error() string { return "no credentials from " + e.source }

func (c *credentialChain) Retrieve() (credentials.Value, error) {
	return c.RetrieveWithCredContext(nil)
}

func (c *credentialChain) RetrieveWithCredContext(cc *credentials.CredContext) (credentials.Value, error) {
	type source struct {
		name     string
		provider credentials.Provider
		demanded bool
	}
	sources := []source{
		{"the environment", &credentials.EnvAWS{}, false},
		{"the AWS profile " + os.Getenv("AWS_PROFILE"), &credentials.FileAWSCredentials{}, os.Getenv("AWS_PROFILE") != ""},
	}
	switch {
	case anyEnv("AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_CONTAINER_CREDENTIALS_FULL_URI"):
		sources = append(sources, source{"the identity service", iam(10 * time.Second), true})
	case c.amazon && os.Getenv("AWS_EC2_METADATA_DISABLED") != "true":
		sources = append(sources, source{"the instance's role", iam(2 * time.Second), false})
	}
	missing := ""
	for _, src := range sources {
		v, err := src.provider.RetrieveWithCredContext(cc)
		if err == nil && v.AccessKeyID != "" && v.SecretAccessKey != "" {
			c.keep(src.provider, v)
			return v, nil
		}
		if src.demanded {
			missing = src.name
		}
	}
	if missing != "" {
		return credentials.Value{}, &credentialError{missing}
	}
	v := credentials.Value{SignerType: credentials.SignatureAnonymous}
	c.keep(nil, v)
	return v, nil
}

func anyEnv(names ...string) bool {
	for _, n := range names {
		if os.Getenv(n) != "" {
			return true
		}
	}
	return false
}

func iam(timeout time.Duration) credentials.Provider {
	return &credentials.IAM{Client: &http.Client{Timeout: timeout}}
}

func (c *credentialChain) keep(p credentials.Provider, v credentials.Value) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.current, c.value = p, v
}

// IsExpired implements credentials.Provider.
func (c *credentialChain) IsExpired() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.current != nil && c.current.IsExpired()
}

func (c *credentialChain) anonymous() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.value.SignerType == credentials.SignatureAnonymous
}

// secrets returns what must not be shown.
func (c *credentialChain) secrets() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var all []string
	for _, s := range []string{c.value.SecretAccessKey, c.value.SessionToken} {
		if len(s) >= 8 {
			all = append(all, s)
		}
	}
	return all
}
