package gs

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"sync"

	"golang.org/x/oauth2"
	"golang.org/x/oauth2/google"

	"github.com/gpu-agent/gpu-agent/pkg/model"
)

const readOnly = "https://www.googleapis.com/auth/devstorage.read_only"

// login keeps one token until it ends. Files are read anew for the next one, so that they may rotate.
type login struct {
	file   string // "" for the default chain
	client *http.Client

	mu      sync.Mutex    // held while a token is asked for: one asks, the others wait for it
	current *oauth2.Token // guarded by mu
}

func (l *login) token(ctx context.Context) (string, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.current.Valid() {
		return l.current.AccessToken, nil
	}
	ctx = context.WithValue(ctx, oauth2.HTTPClient, l.client)
	source, err := l.source(ctx)
	if err != nil {
		return "", err
	}
	t, err := source.Token()
	if err != nil { // its text repeats the answer of the token service
		return "", &model.Error{Reason: "Credentials",
			Text: "Google's token service gives no token for these credentials: check that their account is there and enabled, and that this node can reach the service"}
	}
	l.current = t
	return t.AccessToken, nil
}

func (l *login) source(ctx context.Context) (oauth2.TokenSource, error) {
	if l.file != "" {
		c, err := fromFile(ctx, l.file)
		if err != nil {
			return nil, &model.Error{Reason: "Credentials", Text: "Google credentials", Err: err}
		}
		return c.TokenSource, nil
	}
	c, err := google.FindDefaultCredentials(ctx, readOnly)
	if err != nil {
		return nil, &model.Error{Reason: "Credentials",
			Text: "no Google credentials: name a credentials file in the config, give the node or the pod an account, or say that the buckets are anonymous"}
	}
	return c.TokenSource, nil
}

// fromFile takes the kinds of credentials that need no person and run no program.
func fromFile(ctx context.Context, file string) (*google.Credentials, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("credentials file: %w", err)
	}
	var is struct {
		Type google.CredentialsType `json:"type"`
	}
	if json.Unmarshal(text, &is) == nil && (is.Type == google.ServiceAccount || is.Type == google.ExternalAccount) {
		if c, err := google.CredentialsFromJSONWithType(ctx, text, is.Type, readOnly); err == nil {
			return c, nil
		}
	}
	return nil, fmt.Errorf("credentials file %s: want the JSON of a service account's key or of a workload identity (type service_account or external_account)", file)
}
