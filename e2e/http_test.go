package e2e

import (
	"io"
	"net/http"
	"time"
)

func httpGet(url string) (string, error) {
	client := http.Client{Timeout: time.Minute}
	res, err := client.Get(url)
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(io.LimitReader(res.Body, 1<<20))
	return string(body), err
}
