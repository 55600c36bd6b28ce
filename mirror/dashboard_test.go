package mirror_test

import (
	"encoding/json"
	"os"
	"regexp"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

var metricName = regexp.MustCompile(`patchkeep_mirror_[a-z_]+`)

// metrics are the names of all time series of a mirror that has a sibling, a
// calendar and a ring, as Prometheus stores them.
func metrics(t *testing.T) map[string]bool {
	t.Helper()
	s := newSite(t, everything)
	s.run(t)
	s.want(patchA, bytesA)
	_, body := s.get("/metrics")
	names := map[string]bool{}
	for line := range strings.Lines(string(body)) {
		if name := metricName.FindString(line); strings.HasPrefix(line, name) && name != "" {
			names[name] = true
		}
	}
	return names
}

// expressions are all PromQL in a document of Grafana or Prometheus.
func expressions(doc any) (out []string) {
	switch doc := doc.(type) {
	case map[string]any:
		for key, v := range doc {
			if s, ok := v.(string); ok && (key == "expr" || key == "query" || key == "definition") {
				out = append(out, s)
			}
			out = append(out, expressions(v)...)
		}
	case []any:
		for _, v := range doc {
			out = append(out, expressions(v)...)
		}
	}
	return out
}

// TestDashboardAndAlerts: what the files for Grafana and Prometheus look at is
// there.
func TestDashboardAndAlerts(t *testing.T) {
	there := metrics(t)
	for file, parse := range map[string]func([]byte, any) error{
		"patchkeep-mirror.json":      json.Unmarshal,
		"patchkeep-mirror.rules.yml": func(data []byte, v any) error { return yaml.Unmarshal(data, v) },
	} {
		data, err := os.ReadFile("../docs/grafana/" + file)
		must(t, err)
		var doc map[string]any
		must(t, parse(data, &doc))
		list := expressions(doc)
		if len(list) < 10 {
			t.Errorf("%s: only %d expressions were found", file, len(list))
		}
		for _, e := range list {
			for _, name := range metricName.FindAllString(e, -1) {
				if !there[name] {
					t.Errorf("%s: %s: a mirror does not tell %s", file, e, name)
				}
			}
			if strings.Count(e, "(") != strings.Count(e, ")") || strings.Count(e, "{") != strings.Count(e, "}") {
				t.Errorf("%s: %s: brackets", file, e)
			}
		}
	}
}

// TestDashboardPanels: each is somewhere, once, and says what it shows.
func TestDashboardPanels(t *testing.T) {
	data, err := os.ReadFile("../docs/grafana/patchkeep-mirror.json")
	must(t, err)
	var d struct {
		SchemaVersion int `json:"schemaVersion"`
		Panels        []struct {
			ID      int    `json:"id"`
			Type    string `json:"type"`
			Title   string `json:"title"`
			GridPos struct{ X, Y, W, H int }
			Targets []struct {
				Expr       string            `json:"expr"`
				Datasource map[string]string `json:"datasource"`
			} `json:"targets"`
		} `json:"panels"`
		Templating struct {
			List []struct {
				Name string `json:"name"`
				Type string `json:"type"`
			} `json:"list"`
		} `json:"templating"`
	}
	must(t, json.Unmarshal(data, &d))
	if d.SchemaVersion < 38 {
		t.Errorf("schema version %d is older than Grafana 10's", d.SchemaVersion)
	}
	var variables []string
	for _, v := range d.Templating.List {
		variables = append(variables, v.Type+" "+v.Name)
	}
	if got := strings.Join(variables, ", "); got != "datasource datasource, query job, query instance" {
		t.Errorf("variables: %s", got)
	}
	ids, taken := map[int]bool{}, map[[2]int]string{}
	for _, p := range d.Panels {
		if ids[p.ID] || p.Title == "" {
			t.Errorf("panel %d %q: not the only one, or without a title", p.ID, p.Title)
		}
		ids[p.ID] = true
		if g := p.GridPos; g.W < 1 || g.H < 1 || g.X+g.W > 24 {
			t.Errorf("panel %q is outside", p.Title)
		}
		for x := range p.GridPos.W {
			for y := range p.GridPos.H {
				at := [2]int{p.GridPos.X + x, p.GridPos.Y + y}
				if taken[at] != "" {
					t.Fatalf("panels %q and %q overlap", taken[at], p.Title)
				}
				taken[at] = p.Title
			}
		}
		if p.Type == "row" {
			continue
		}
		for _, target := range p.Targets {
			if !strings.Contains(target.Expr, `instance=~"$instance"`) || target.Datasource["uid"] != "${datasource}" {
				t.Errorf("panel %q: %s: not of the instances and the data source that were picked", p.Title, target.Expr)
			}
		}
		if len(p.Targets) == 0 {
			t.Errorf("panel %q shows nothing", p.Title)
		}
	}
}
