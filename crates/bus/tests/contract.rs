//! What every adapter promises, proved on each of them by the same tests.

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

/// Each test on both adapters. In memory on a paused clock, so that no deadline takes any time.
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
        a_request_is_answered
        many_requests_at_once_each_get_their_own_answer
        nobody_there_is_said_at_once
        a_hung_responder_costs_the_deadline
        a_late_answer_goes_to_nobody
        a_queue_group_shares_what_others_all_get
        a_queue_group_is_known_by_its_name_alone
        wildcards_match_whole_tokens
        headers_arrive
        a_message_may_be_as_large_as_the_limit_and_no_larger
        a_full_subscription_drops_the_newest_and_says_so
        large_messages_that_nobody_takes_are_dropped_before_they_fill_the_memory
        a_dropped_subscription_is_gone
        what_was_sent_before_listening_ended_arrives
        a_subscription_is_in_force_when_subscribe_returns
        what_no_transport_carries_is_refused;
    refusals:
        a_forbidden_request_fails_at_once
        a_forbidden_publish_is_told
        a_forbidden_subscription_fails
        a_refusal_hits_only_its_own_route;
    connection:
        the_connection_comes_back_with_its_subscriptions
        a_request_waits_for_the_connection
        a_request_without_connection_is_not_sent_after_its_deadline
        a_request_in_flight_runs_to_its_deadline_when_the_connection_is_lost
        what_is_published_without_connection_goes_nowhere
        a_closed_bus_does_nothing_more
        what_was_published_before_closing_arrives;
    services:
        typed_requests_carry_results_and_errors
        an_answer_that_is_too_large_becomes_an_error
        a_service_can_be_discovered
        health_is_answered_under_both_routes;
}
