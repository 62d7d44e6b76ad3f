"""The part of the configuration that the controller needs, in the controller's own terms."""

from __future__ import annotations

from collections.abc import Mapping

from agentd.amounts import parse_budget
from agentd.config.checks import uids_of_tenants
from agentd.config.model import REFUSE, Config, PricesSection, TokenPricesSection
from controller.budget.price import Prices, TokenPrices
from controller.config import CallConfig, HostConfig, TenantConfig
from controller.model import BudgetRule, Resource


def host_config(config: Config) -> HostConfig:
    """For the controller. Users are looked up here, so that a reload sees accounts made since the start."""
    uids: dict[str, set[int]] = {}
    for uid, name in uids_of_tenants(config).items():
        uids.setdefault(name, set()).add(uid)
    return HostConfig(
        tenants=tuple(
            TenantConfig(
                name=name,
                uids=frozenset(uids.get(name, ())),
                limits=tenant.limits(),
                priority=tenant.priority,
                max_calls=tenant.max_calls,
                max_sessions=tenant.max_sessions,
                budgets=_rules(tenant.budgets),
                session_budgets=_rules(tenant.session_budgets),
                weight=tenant.weight,
            )
            for name, tenant in config.all_tenants.items()
        ),
        default_tenant=None if config.default_tenant.policy == REFUSE else config.default_tenant.policy,
        call=CallConfig(
            memory_max=config.call.memory_max,
            pids_max=config.call.pids_max,
            io_max=config.call.io_max,
            egress_max=config.call.egress_max,
            brake_factor=config.call.brake_factor,
            hard_limit_factor=config.call.hard_limit_factor,
            hold_max=config.call.hold_max,
            raise_step=config.call.raise_step,
        ),
        memory=config.host.memory,
        memory_reserve=config.host.memory_reserve,
        sample_interval=config.host.sample_interval,
        sample_budget=config.host.sample_budget,
        record_interval=config.ledger.sample_interval,
        restart_grace=config.daemon.restart_grace,
        leftovers=config.daemon.leftovers,
        leftover_grace=config.daemon.leftover_grace,
        token_ttl=config.broker.token_ttl,
        prices=_prices(config.prices),
        keep_ended=config.daemon.keep_ended,
    )


def _rules(budgets: Mapping[str, str]) -> tuple[BudgetRule, ...]:
    return tuple(parse_budget(Resource(resource), text) for resource, text in budgets.items())


def _prices(prices: PricesSection) -> Prices:
    return Prices(
        cpu_hour=prices.cpu_hour,
        gib_hour=prices.gib_hour,
        network_gb=prices.network_gb,
        gpu_hour=prices.gpu_hour,
        kwh=prices.kwh,
        call=prices.call,
        tokens=_token_prices(prices),
        engines={name: _token_prices(of) for name, of in prices.engines.items()},
    )


def _token_prices(of: PricesSection | TokenPricesSection) -> TokenPrices:
    return TokenPrices(prompt=of.prompt_tokens, cached=of.cached_tokens, generated=of.generated_tokens)
