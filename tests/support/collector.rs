//! A collector of traces for tests: real HTTP, and what it was sent, decoded.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::trace::v1::Span;
use poem::http::StatusCode;
use poem::listener::TcpAcceptor;
use poem::web::Data;
use poem::{Body, EndpointExt, Request, Route, Server, handler, post};
use prost::Message;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

/// A request that came.
#[derive(Clone)]
pub struct Received {
    pub content_type: String,
    pub bytes: Vec<u8>,
    pub export: ExportTraceServiceRequest,
}

type Inbox = Arc<Mutex<Vec<Received>>>;

/// A running collector.
pub struct Collector {
    pub address: SocketAddr,
    inbox: Inbox,
    server: JoinHandle<std::io::Result<()>>,
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.server.abort();
    }
}

#[handler]
async fn receive(request: &Request, body: Body, Data(inbox): Data<&Inbox>) -> StatusCode {
    let bytes = body.into_vec().await.unwrap();
    let export = ExportTraceServiceRequest::decode(&bytes[..]).unwrap();
    let content_type = request.content_type().unwrap_or_default().to_owned();
    inbox.lock().unwrap().push(Received {
        content_type,
        bytes,
        export,
    });
    StatusCode::OK
}

impl Collector {
    pub async fn start() -> Self {
        Self::start_at("127.0.0.1:0".parse().unwrap()).await
    }

    pub async fn start_at(address: SocketAddr) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let inbox = Inbox::default();
        let routes = Route::new().at("/v1/traces", post(receive)).data(Arc::clone(&inbox));
        let acceptor = TcpAcceptor::from_tokio(listener).unwrap();
        let server = tokio::spawn(Server::new_with_acceptor(acceptor).run(routes));
        Self { address, inbox, server }
    }

    /// As `OTEL_EXPORTER_OTLP_ENDPOINT` wants it.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn received(&self) -> Vec<Received> {
        self.inbox.lock().unwrap().clone()
    }

    /// Every part of a trace so far.
    pub fn spans(&self) -> Vec<Span> {
        let received = self.received().into_iter();
        let resources = received.flat_map(|received| received.export.resource_spans);
        let scopes = resources.flat_map(|resource| resource.scope_spans);
        scopes.flat_map(|scope| scope.spans).collect()
    }

    /// Waits until this is true of what came so far.
    pub async fn until(&self, enough: impl Fn(&[Span]) -> bool) -> Vec<Span> {
        let came = timeout(Duration::from_secs(30), async {
            while !enough(&self.spans()) {
                sleep(Duration::from_millis(10)).await;
            }
        });
        let came = came.await;
        assert!(came.is_ok(), "only these came: {:#?}", self.spans());
        self.spans()
    }
}
