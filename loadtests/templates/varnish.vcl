vcl 4.1;
import std;
import bodyaccess;

backend upstream {
  .host = "127.0.0.1";
  .port = "@upstream_port@";
}

sub vcl_recv {
  unset req.http.Cookie;
  if (req.method == "POST") {
    if (!std.cache_req_body(64KB)) {
      return (synth(413));
    }
    set req.http.X-Method = req.method;
    return (hash);
  }
}

sub vcl_hash {
  bodyaccess.hash_req_body();
}

sub vcl_backend_fetch {
  set bereq.method = bereq.http.X-Method;
}

sub vcl_backend_response {
  set beresp.ttl = 1d;
}
