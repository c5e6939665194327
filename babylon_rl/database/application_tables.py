"""The application's own tables, in the exact shape that Prisma gives them; a MetaData that Alembic never sees.

Quoted camelCase, `TIMESTAMP(3)` without zone in UTC, ids made by the application, JSON in TEXT. They are read
everywhere and created only on the embedded server or where someone asks. Of `User` and the market's tables only the
columns that are read here are listed.
"""

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB, TIMESTAMP

application_metadata = sa.MetaData(
    naming_convention={
        "ix": "%(table_name)s_%(column_0_N_name)s_idx",
        "uq": "%(table_name)s_%(column_0_N_name)s_key",
        "fk": "%(table_name)s_%(column_0_N_name)s_fkey",
        "pk": "%(table_name)s_pkey",
    }
)

Moment = TIMESTAMP(precision=3)


def _id() -> sa.Column:
    return sa.Column("id", sa.Text, primary_key=True)


def _text(name: str, *, null: bool = False, default: str | None = None, unique: bool = False) -> sa.Column:
    return sa.Column(name, sa.Text, nullable=null, server_default=default, unique=unique)


def _short(name: str, length: int, *, null: bool = True) -> sa.Column:
    return sa.Column(name, sa.String(length), nullable=null)


def _moment(name: str, *, null: bool = False, default: bool = False) -> sa.Column:
    default_now = sa.text("CURRENT_TIMESTAMP") if default else None
    return sa.Column(name, Moment, nullable=null, server_default=default_now)


def _real(name: str, *, null: bool = True) -> sa.Column:
    return sa.Column(name, sa.Double, nullable=null)


def _whole(name: str, *, null: bool = True, default: int | None = None) -> sa.Column:
    return sa.Column(name, sa.Integer, nullable=null, server_default=None if default is None else sa.text(str(default)))


def _flag(name: str, *, null: bool = False, default: bool | None = None) -> sa.Column:
    return sa.Column(
        name, sa.Boolean, nullable=null, server_default=None if default is None else sa.text(str(default).lower())
    )


def _money(name: str, digits: int, scale: int, *, null: bool = True, default: int | None = None) -> sa.Column:
    default_text = None if default is None else sa.text(str(default))
    return sa.Column(name, sa.Numeric(digits, scale), nullable=null, server_default=default_text)


user = sa.Table(
    "User",
    application_metadata,
    _id(),
    _text("username", null=True, unique=True),
    _text("displayName", null=True),
    _flag("isActor", default=False),
    _flag("isAgent", default=False),
    _flag("isTest", default=False),
    _text("agentSystem", null=True),
    _text("agentTradingStrategy", null=True),
    _text("agentModelTier", default="free"),
    _text("agentStatus", default="idle"),
    _whole("agentPointsBalance", null=False, default=0),
    _flag("autonomousTrading", default=False),
    _flag("autonomousPosting", default=False),
    _flag("autonomousCommenting", default=False),
    _money("virtualBalance", 18, 2, null=False, default=1000),
    _money("lifetimePnL", 18, 2, null=False, default=0),
    _whole("reputationPoints", null=False, default=1000),
    sa.Column("managedBy", sa.Text, sa.ForeignKey("User.id", ondelete="SET NULL", onupdate="CASCADE")),
    _moment("createdAt", default=True),
    _moment("updatedAt"),
)

trajectories = sa.Table(
    "trajectories",
    application_metadata,
    _id(),
    _text("trajectoryId", unique=True),
    sa.Column("agentId", sa.Text, sa.ForeignKey("User.id", ondelete="CASCADE", onupdate="CASCADE"), nullable=False),
    _moment("startTime"),
    _moment("endTime"),
    _whole("durationMs", null=False),
    _short("windowId", 50),
    _whole("windowHours", null=False, default=1),
    _short("episodeId", 100),
    _short("scenarioId", 100),
    _short("batchId", 100),
    _text("stepsJson"),
    _text("rewardComponentsJson"),
    _text("metricsJson"),
    _text("metadataJson"),
    _real("totalReward", null=False),
    _whole("episodeLength", null=False),
    _text("finalStatus"),
    _real("finalBalance"),
    _real("finalPnL"),
    _whole("tradesExecuted"),
    _whole("postsCreated"),
    _real("aiJudgeReward"),
    _text("aiJudgeReasoning", null=True),
    _moment("judgedAt", null=True),
    _flag("isTrainingData", default=True),
    _flag("isEvaluation", default=False),
    _flag("usedInTraining", default=False),
    _text("trainedInBatch", null=True),
    _moment("createdAt", default=True),
    _moment("updatedAt"),
    sa.Index(None, "agentId", "startTime"),
    sa.Index(None, "aiJudgeReward"),
    sa.Index(None, "isTrainingData", "usedInTraining"),
    sa.Index(None, "scenarioId", "createdAt"),
    sa.Index(None, "trainedInBatch"),
    sa.Index(None, "windowId", "agentId"),
    sa.Index(None, "windowId"),
)

llm_call_logs = sa.Table(
    "llm_call_logs",
    application_metadata,
    _id(),
    _text("trajectoryId"),
    _text("stepId"),
    _text("callId", unique=True),
    _moment("timestamp"),
    _whole("latencyMs"),
    _text("model"),
    _text("purpose"),
    _text("actionType", null=True),
    _text("systemPrompt"),
    _text("userPrompt"),
    _text("messagesJson", null=True),
    _text("response"),
    _text("reasoning", null=True),
    _real("temperature", null=False),
    _whole("maxTokens", null=False),
    _real("topP"),
    _whole("promptTokens"),
    _whole("completionTokens"),
    _whole("totalTokens"),
    _text("metadata", null=True),
    _moment("createdAt", default=True),
    sa.Index(None, "callId"),
    sa.Index(None, "timestamp"),
    sa.Index(None, "trajectoryId"),
)

market_outcomes = sa.Table(
    "market_outcomes",
    application_metadata,
    _id(),
    _short("windowId", 50, null=False),
    _short("stockTicker", 20),
    _money("startPrice", 10, 2),
    _money("endPrice", 10, 2),
    _money("changePercent", 5, 2),
    _short("sentiment", 20),
    sa.Column("newsEvents", JSONB(none_as_null=True)),
    _text("predictionMarketId", null=True),
    _text("question", null=True),
    _short("outcome", 20),
    _money("finalProbability", 5, 4),
    _money("volume", 15, 2),
    _moment("createdAt", default=True),
    sa.Index(None, "windowId"),
    sa.Index(None, "windowId", "stockTicker"),
)

training_batches = sa.Table(
    "training_batches",
    application_metadata,
    _id(),
    _text("batchId", unique=True),
    _text("scenarioId", null=True),
    _text("baseModel"),
    _text("modelVersion"),
    _text("trajectoryIds"),
    _text("rankingsJson", null=True),
    _text("rewardsJson"),
    _real("trainingLoss"),
    _real("policyImprovement"),
    _text("status", default="pending"),
    _text("error", null=True),
    _moment("createdAt", default=True),
    _moment("startedAt", null=True),
    _moment("completedAt", null=True),
    sa.Index(None, "scenarioId"),
    sa.Index(None, "status", "createdAt"),
)

trained_models = sa.Table(
    "trained_models",
    application_metadata,
    _id(),
    _text("modelId", unique=True),
    _text("version"),
    _text("baseModel"),
    _text("trainingBatch", null=True),
    _text("status", default="training"),
    _moment("deployedAt", null=True),
    _moment("archivedAt", null=True),
    _text("storagePath"),
    _real("benchmarkScore"),
    _real("accuracy"),
    _real("avgReward"),
    sa.Column("evalMetrics", JSONB(none_as_null=True)),
    _text("wandbRunId", null=True),
    _text("wandbArtifactId", null=True),
    _whole("agentsUsing", null=False, default=0),
    _whole("totalInferences", null=False, default=0),
    _moment("createdAt", default=True),
    _moment("updatedAt"),
    sa.Index(None, "status"),
    sa.Index(None, "version"),
    sa.Index(None, "deployedAt"),
)

reward_judgments = sa.Table(
    "reward_judgments",
    application_metadata,
    _id(),
    sa.Column(
        "trajectoryId",
        sa.Text,
        sa.ForeignKey("trajectories.trajectoryId", ondelete="CASCADE", onupdate="CASCADE"),
        nullable=False,
        unique=True,
    ),
    _text("judgeModel"),
    _text("judgeVersion"),
    _real("overallScore", null=False),
    _text("componentScoresJson", null=True),
    _whole("rank"),
    _real("normalizedScore"),
    _text("groupId", null=True),
    _text("reasoning"),
    _text("strengthsJson", null=True),
    _text("weaknessesJson", null=True),
    _text("criteriaJson"),
    _moment("judgedAt", default=True),
    sa.Index(None, "overallScore"),
    sa.Index(None, "groupId", "rank"),
)

# --- the market: what outcomes are computed from ---------------------------------------------------

organization = sa.Table(
    "Organization",
    application_metadata,
    _id(),
    _text("name"),
    _moment("createdAt", default=True),
    _moment("updatedAt"),
)

stock_price = sa.Table(
    "StockPrice",
    application_metadata,
    _id(),
    _text("organizationId"),
    _real("price", null=False),
    _moment("timestamp", default=True),
    _flag("isSnapshot", default=False),
)
sa.Index("StockPrice_organizationId_timestamp_idx", stock_price.c.organizationId, stock_price.c.timestamp.desc())

perp_position = sa.Table(
    "PerpPosition",
    application_metadata,
    _id(),
    _text("userId"),
    _text("ticker"),
    _text("organizationId"),
    _text("side"),
    _real("entryPrice", null=False),
    _real("currentPrice", null=False),
    _real("size", null=False),
    _whole("leverage", null=False),
    _moment("openedAt", default=True),
    _moment("lastUpdated"),
    _moment("closedAt", null=True),
    _real("realizedPnL"),
)

market = sa.Table(
    "Market",
    application_metadata,
    _id(),
    _text("question"),
    _money("yesShares", 18, 6, null=False, default=0),
    _money("noShares", 18, 6, null=False, default=0),
    _money("liquidity", 18, 6, null=False),
    _flag("resolved", default=False),
    _flag("resolution", null=True),
    _moment("endDate"),
    _moment("createdAt", default=True),
    _moment("updatedAt"),
)

prediction_price_history = sa.Table(
    "PredictionPriceHistory",
    application_metadata,
    _id(),
    _text("marketId"),
    _real("yesPrice", null=False),
    _real("noPrice", null=False),
    _moment("createdAt", default=True),
)
sa.Index(
    "PredictionPriceHistory_marketId_createdAt_idx",
    prediction_price_history.c.marketId,
    prediction_price_history.c.createdAt.desc(),
)

# Read where the application has it; not in `application_metadata`, so that it is never made.
position = sa.Table(
    "Position",
    sa.MetaData(),
    _id(),
    _text("marketId"),
    _flag("side"),
    _money("avgPrice", 18, 6, null=False),
    _moment("createdAt", default=True),
    _moment("updatedAt"),
)
