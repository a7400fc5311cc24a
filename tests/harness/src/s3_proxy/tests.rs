use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use hyper::Method;

use super::*;

/// A server that answers each request with the bytes of its body, and counts them.
async fn echo(tasks: &mut JoinSet<()>) -> (u16, Arc<AtomicUsize>) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let served = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&served);
    tasks.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            let count = Arc::clone(&count);
            connections.spawn(async move {
                let service = hyper::service::service_fn(|request: Request<Incoming>| {
                    count.fetch_add(1, Ordering::Relaxed);
                    async {
                        let body = request.into_body().collect().await.unwrap().to_bytes();
                        Ok::<_, Infallible>(Response::new(Full::new(body)))
                    }
                });
                let io = TokioIo::new(stream);
                hyper::server::conn::http1::Builder::new().serve_connection(io, service).await.ok();
            });
        }
    });
    (port, served)
}

async fn ask(proxy: &S3Proxy, method: Method, path: &str, body: Vec<u8>) -> anyhow::Result<Response<Bytes>> {
    let request = Request::builder().method(method).uri(path).body(Bytes::from(body)).unwrap();
    forward(SocketAddr::from(([127, 0, 0, 1], proxy.port())), request).await
}

/// A proxy without limits forwards requests and answers unchanged, and records them.
#[tokio::test]
async fn s3_proxy_forwards_and_records_requests() {
    let mut tasks = JoinSet::new();
    let (port, _) = echo(&mut tasks).await;
    let proxy = S3Proxy::start(port).await.unwrap();
    let body: Vec<u8> = (0..300_000_u32).map(|at| (at % 251) as u8).collect();
    let answer = ask(&proxy, Method::PUT, "/bucket/logs/1", body.clone()).await.unwrap();
    assert_eq!(answer.into_body(), body);
    let [request] = &proxy.take_requests()[..] else { panic!("one request") };
    assert_eq!(request.operation, S3Operation::Put);
    assert_eq!((request.path.as_str(), request.body_bytes), ("/bucket/logs/1", 300_000));
    assert!(proxy.take_requests().is_empty());
}

/// A lost request does not reach the server; a request with a lost answer does, and the client gets nothing.
#[tokio::test]
async fn s3_proxy_loses_requests_and_answers() {
    let mut tasks = JoinSet::new();
    let (port, served) = echo(&mut tasks).await;
    let proxy = S3Proxy::start(port).await.unwrap();
    for (fault, reaches) in [(S3Fault::RequestLost, 0), (S3Fault::AnswerLost, 1)] {
        served.store(0, Ordering::Relaxed);
        proxy.inject(S3Operation::Put, "lost", fault, 1);
        let mut asked = std::pin::pin!(ask(&proxy, Method::PUT, "/bucket/lost", b"a".to_vec()));
        let arrived = async {
            while proxy.shared.state().requests.is_empty() || served.load(Ordering::Relaxed) < reaches {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            _ = &mut asked => panic!("{fault:?}: an answer"),
            () = arrived => {}
        }
        assert_eq!(proxy.take_requests()[0].fault, fault);
        // Other requests are not affected, and the fault is used up.
        ask(&proxy, Method::PUT, "/bucket/other", b"b".to_vec()).await.unwrap();
        ask(&proxy, Method::PUT, "/bucket/lost", b"c".to_vec()).await.unwrap();
        assert_eq!(served.load(Ordering::Relaxed), reaches + 2, "{fault:?}");
        assert_eq!(proxy.take_requests().len(), 2);
    }
}

/// A cut answer breaks the connection; a request above the rate limit gets 503 and does not reach the server.
#[tokio::test]
async fn s3_proxy_cuts_answers_and_limits_rate() {
    let mut tasks = JoinSet::new();
    let (port, served) = echo(&mut tasks).await;
    let proxy = S3Proxy::start(port).await.unwrap();
    proxy.inject(S3Operation::Put, "", S3Fault::AnswerCut(70_000), 1);
    ask(&proxy, Method::PUT, "/bucket/cut", vec![7; 200_000]).await.unwrap_err();
    ask(&proxy, Method::PUT, "/bucket/cut", vec![7; 200_000]).await.unwrap();
    served.store(0, Ordering::Relaxed);
    proxy.set_link(LinkProfile { requests_per_second: Some(1), ..LinkProfile::default() });
    let mut refused = 0;
    // Within one second of real time, one request passes. A slow machine needs more rounds, never a longer wait.
    while refused == 0 {
        let answer = ask(&proxy, Method::PUT, "/bucket/b", vec![7]).await.unwrap();
        refused += usize::from(answer.status() == StatusCode::SERVICE_UNAVAILABLE);
    }
    let requests = proxy.take_requests();
    let accepted = requests.iter().filter(|request| request.fault == S3Fault::None).count();
    assert_eq!(accepted, served.load(Ordering::Relaxed) + 1, "one came before the limit");
}

/// Bytes need at least their size divided by the bandwidth, in each direction, and a request at least the latency.
#[tokio::test]
async fn s3_proxy_limits_bandwidth_both_ways() {
    let mut tasks = JoinSet::new();
    let (port, _) = echo(&mut tasks).await;
    let proxy = S3Proxy::start(port).await.unwrap();
    let rate = Some(1_000_000);
    let slow = LinkProfile { latency: Duration::from_millis(50), ..LinkProfile::default() };
    for profile in [
        slow,
        LinkProfile { upload_bytes_per_second: rate, ..slow },
        LinkProfile { download_bytes_per_second: rate, ..slow },
        LinkProfile { upload_bytes_per_second: rate, download_bytes_per_second: rate, ..slow },
    ] {
        proxy.set_link(profile);
        let began = proxy.shared.began.elapsed();
        ask(&proxy, Method::PUT, "/bucket/a", vec![7; 200_000]).await.unwrap();
        let took = proxy.shared.began.elapsed() - began;
        let limits =
            [profile.upload_bytes_per_second, profile.download_bytes_per_second].into_iter().flatten();
        let least =
            Duration::from_millis(50) + Duration::from_millis(200) * u32::try_from(limits.count()).unwrap();
        assert!(took >= least, "{profile:?}: {took:?}");
    }
}
