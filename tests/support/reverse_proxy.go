// Go's ReverseProxy as its documentation shows it: reverse_proxy PORT UPSTREAM_URL TIMEOUT
package main

import (
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"time"
)

func main() {
	upstream, err := url.Parse(os.Args[2])
	if err != nil {
		panic(err)
	}
	timeout, err := time.ParseDuration(os.Args[3])
	if err != nil {
		panic(err)
	}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.ResponseHeaderTimeout = timeout
	transport.MaxIdleConns = 0 // no limit, as of the others in the benchmark
	transport.MaxIdleConnsPerHost = 10000
	proxy := httputil.NewSingleHostReverseProxy(upstream)
	proxy.Transport = transport
	http.Handle("/", proxy) // for the benchmark
	http.Handle("/api/", http.StripPrefix("/api", proxy))
	panic(http.ListenAndServe("127.0.0.1:"+os.Args[1], nil))
}
