//! The contract of every adapter: the same tests run on each of them.

#[path = "contract/connection.rs"]
mod connection;
#[path = "contract/fixture.rs"]
mod fixture;
#[path = "contract/messages.rs"]
mod messages;
#[path = "contract/refusals.rs"]
mod refusals;
#[path = "contract/services.rs"]
mod services;

/// Runs each test on both adapters. The memory adapter uses a paused clock, so no deadline takes real time.
macro_rules! contract {
    ($($module:ident: $($test:ident)*;)*) => {
        mod on_memory {
            $($(
                #[tokio::test(start_paused = true)]
                async fn $test() {
                    super::$module::$test(super::fixture::Memory::start().await).await;
                }
            )*)*
        }

        mod on_nats {
            $($(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $test() {
                    super::$module::$test(super::fixture::Nats::start().await).await;
                }
            )*)*
        }
    };
}

contract! {
    messages:
        request_receives_reply
        requests_in_parallel_receive_matching_replies
        request_without_responder_fails_at_once
        request_to_hung_responder_fails_at_deadline
        reply_after_deadline_is_discarded
        queue_group_shares_messages_others_get_all
        queue_group_is_identified_by_name_alone
        wildcards_match_whole_tokens
        headers_arrive
        message_up_to_max_payload_is_accepted
        subscription_full_drops_newest_and_reports
        subscription_bounds_bytes_of_unread_messages
        subscription_dropped_is_removed
        subscription_ended_delivers_messages_sent_before
        subscription_is_active_when_subscribe_returns
        bus_rejects_invalid_routes_headers_and_patterns;
    refusals:
        request_without_permission_fails_at_once
        publish_without_permission_is_reported
        subscription_without_permission_fails
        permission_denial_affects_only_one_route;
    connection:
        reconnect_restores_subscriptions
        round_trip_needs_connection
        request_while_disconnected_waits_for_reconnect
        request_expired_while_disconnected_is_never_sent
        request_in_flight_at_disconnect_fails_at_deadline
        publish_while_disconnected_is_discarded
        bus_closed_rejects_all_operations
        bus_close_delivers_published_messages;
    services:
        service_returns_typed_results_and_errors
        service_reply_over_max_payload_becomes_error
        service_is_discoverable
        health_is_answered_under_both_routes;
}
