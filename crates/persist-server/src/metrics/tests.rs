use dormouse_harness::metric_docs_differences;
use dormouse_metrics::registry::families;

use super::*;

/// The page of the metrics lists every metric of a server with its type and labels, and no other.
#[test]
#[cfg(target_os = "linux")]
fn metrics_page_lists_every_metric_of_server() {
    let text = ServerMetrics::new(&Env::system(), DiskRoom::default()).text();
    let metrics: Vec<[String; 3]> = families(&text)
        .into_iter()
        .map(|family| [family.name, family.kind, family.labels.join(", ")])
        .collect();
    let page = include_str!("../../../../docs/metrics.md");
    assert_eq!(metric_docs_differences(&metrics, page, &["Both programs", "Server"]), Vec::<String>::new());
}
